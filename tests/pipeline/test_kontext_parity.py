"""`arch=reference_tokens` computes what diffusers' own FluxKontextPipeline does from the same weights and noise."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from diffusers import FluxKontextPipeline, FluxTransformer2DModel
from support.commands import compose_train
from support.models.golden_pipeline import IMAGE
from torch import Tensor

from dsd_lightning.flux import tokens
from dsd_lightning.flux.base import FluxBase
from dsd_lightning.models.build import build_architecture
from dsd_lightning.pairs import Condition, TextEmbeddings
from dsd_lightning.pipeline import TwoFramePipeline
from dsd_lightning.pipeline.inputs import fit, to_pixels
from dsd_lightning.pipeline.schedule import scheduler_of_base
from dsd_lightning.randomness import normal

SIDE, STEPS, GUIDANCE, PROMPT = 64, 4, 2.5, "this character, large"
CLOSE = {"rtol": 0, "atol": 1e-5}


@pytest.fixture(scope="module")
def ours(tiny_base: Path) -> TwoFramePipeline:
    """Return our pipeline on `base=flux_kontext` with the twin's weights, before any training."""
    choices = (
        "base=flux_kontext",
        "arch=reference_tokens",
        "arch.lora=null",
        f"base.model.path={tiny_base}",
        "base.model.dtype=float32",
        "base.model.text_length=24",
    )
    config = compose_train(Path("run"), *choices)
    base = FluxBase(str(tiny_base), text_length=24)
    with pytest.raises(ValueError, match="nothing would be trained"):
        build_architecture(config)  # it is Kontext itself
    from hydra.utils import instantiate

    text = base.text_encoder()
    pipeline = TwoFramePipeline(
        scheduler=scheduler_of_base(base),
        vae=base.codec().vae,
        text_encoder=text.clip,
        tokenizer=text.clip_tokenizer,
        text_encoder_2=text.t5,
        tokenizer_2=text.t5_tokenizer,
        transformer=instantiate(config.arch)(transformer=base.transformer()),
        text_length=24,
        default_size=SIDE,
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.fixture(scope="module")
def stock(ours: TwoFramePipeline, tiny_base: Path) -> FluxKontextPipeline:
    pipeline = FluxKontextPipeline(
        scheduler=ours.scheduler,
        vae=ours.vae,
        text_encoder=ours.text_encoder,
        tokenizer=ours.tokenizer,
        text_encoder_2=ours.text_encoder_2,
        tokenizer_2=ours.tokenizer_2,
        transformer=FluxTransformer2DModel.from_pretrained(tiny_base / "transformer"),
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@torch.no_grad()
def test_a_prediction_is_the_stock_transformers(ours: TwoFramePipeline, stock: FluxKontextPipeline) -> None:
    noisy, reference = normal((1, 6, 16, 16), "noisy"), normal((1, 6, 16, 16), "reference")
    text = TextEmbeddings(normal((1, 5, 64), "text"), normal((1, 64), "pooled"))
    condition = Condition(text, torch.tensor([GUIDANCE]), {"latents": reference})
    ids = FluxKontextPipeline._prepare_latent_image_ids(1, 8, 8, "cpu", torch.float32)
    beside = ids.clone()
    beside[..., 0] = 1
    expected = stock.transformer(
        hidden_states=torch.cat([tokens.pack(noisy), tokens.pack(reference)], dim=1),
        encoder_hidden_states=text.sequence,
        pooled_projections=text.pooled,
        timestep=torch.tensor([0.7]),
        guidance=condition.guidance,
        img_ids=torch.cat([ids, beside]),
        txt_ids=torch.zeros(5, 3),
    ).sample[:, :64]
    predicted = ours.transformer(noisy, torch.tensor([0.7]), condition)
    torch.testing.assert_close(tokens.pack(predicted), expected, **CLOSE)


def test_latents_are_the_stock_pipelines(ours: TwoFramePipeline, stock: FluxKontextPipeline) -> None:
    noise = tokens.pack(normal((1, 6, SIDE // 4, SIDE // 4), "noise"))
    given: dict[str, object] = {"num_inference_steps": STEPS, "guidance_scale": GUIDANCE, "latents": noise}
    size = {"height": SIDE, "width": SIDE, "output_type": "latent"}
    # Pixels as ours come from PIL, which reads the image alike.
    pixels = to_pixels(fit(IMAGE, SIDE, SIDE), SIDE, SIDE)[None]
    expected: Tensor = stock(
        (pixels + 1) / 2, PROMPT, max_area=SIDE**2, max_sequence_length=24, _auto_resize=False, **given, **size
    ).images
    latents: Tensor = ours(IMAGE, PROMPT, **given, **size).images
    torch.testing.assert_close(latents, expected, **CLOSE)
    assert (ours(IMAGE.rotate(90), PROMPT, **given, **size).images - expected).abs().max() > 1e-3
