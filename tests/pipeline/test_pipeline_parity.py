"""The pipeline computes what the official one does, from the same weights and noise."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, FluxPipeline, FluxTransformer2DModel
from diffusers.image_processor import VaeImageProcessor
from diffusers.pipelines.flux.pipeline_flux import calculate_shift
from PIL import Image
from safetensors.torch import load_file
from support.models.golden_pipeline import BASE, IMAGE, LORA, PROMPT, SIDE, STEPS, TRANSFORMER, draw, noise, official
from tokenizers import Tokenizer
from torch import Tensor, nn

from dsd_lightning.flux.base import FluxBase
from dsd_lightning.pipeline.inputs import fit

# --- Parity, with the official pipeline written down a second time from diffusers' own parts.


class Embedder(nn.Module):
    """The official sum of two embeddings, with the condition held rather than passed."""

    def __init__(self, x_embedder: nn.Module, weights: dict[str, Tensor]) -> None:
        super().__init__()
        self.x_embedder, self.condition = x_embedder, torch.zeros(0)
        self.c_embedder = nn.Linear(x_embedder.in_features, x_embedder.out_features)
        self.c_embedder.load_state_dict(
            {name.split(".")[1]: value for name, value in weights.items() if name.startswith("c_embedder")}
        )

    def forward(self, noisy: Tensor) -> Tensor:
        return self.x_embedder(noisy) + self.c_embedder(self.condition)


@cache
@torch.no_grad()
def reference_pipeline(
    lora: bool, image_guidance: float, text_guidance: float, side: int = SIDE
) -> tuple[Tensor, Image.Image]:
    """Return the official final latents and image for IMAGE and PROMPT (docs/architecture.md lists the facts)."""
    weights = {name: value.clone() for name, value in load_file(next(TRANSFORMER.glob("*.safetensors"))).items()}
    if lora:
        factors = load_file(LORA)
        for name in {key.split(".lora_")[0] for key in factors}:
            update = factors[f"{name}.lora_B.weight"] @ factors[f"{name}.lora_A.weight"]
            weights[name.removeprefix("transformer.") + ".weight"] += update
    config = FluxTransformer2DModel.load_config(TRANSFORMER)
    transformer = FluxTransformer2DModel(**{k: v for k, v in config.items() if not k.startswith("_")})
    transformer.load_state_dict({name: value for name, value in weights.items() if not name.startswith("c_embedder")})
    embedder = transformer.x_embedder = Embedder(transformer.x_embedder, weights)
    base = FluxBase(str(BASE), initialise="meta", transformer_config={}, text_length=512)
    parts = base.text_encoder()
    pipe = FluxPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler.from_pretrained(BASE, subfolder="scheduler"),
        vae=base.codec().vae,
        text_encoder=parts.clip,
        tokenizer=parts.clip_tokenizer,
        text_encoder_2=parts.t5,
        tokenizer_2=parts.t5_tokenizer,
        transformer=transformer,
    )
    text, pooled, text_ids = pipe.encode_prompt(PROMPT, None)
    null, null_pooled, _ = pipe.encode_prompt("", None)
    short = min(IMAGE.size)
    left, top = (IMAGE.width - short) // 2, (IMAGE.height - short) // 2
    square = IMAGE.crop((left, top, left + short, top + short)).resize((side, side))
    # contiguous: torch's GroupNorm on the CPU is inaccurate by up to 6e-4 on the channels-last pixels that come out of numpy
    pixels = VaeImageProcessor().preprocess(square, height=side, width=side).contiguous()
    canvas = torch.cat([pixels, torch.full_like(pixels, -1)], dim=-1)
    clean = (pipe.vae.encode(canvas).latent_dist.mode() - pipe.vae.config.shift_factor) * pipe.vae.config.scaling_factor
    size = (side // 8, side // 4)
    condition = pipe._pack_latents(clean, 1, 4, *size)
    ids = pipe._prepare_latent_image_ids(1, size[0] // 2, size[1] // 2, "cpu", torch.float32)
    latents = noise(side=side)
    names = ("base_image_seq_len", "max_image_seq_len", "base_shift", "max_shift")
    mu = calculate_shift(latents.shape[1], *(pipe.scheduler.config[name] for name in names))
    pipe.scheduler.set_timesteps(sigmas=np.linspace(1.0, 1 / STEPS, STEPS), mu=mu)

    def predict(time: Tensor, words: Tensor, pool: Tensor, shown: Tensor) -> Tensor:
        embedder.condition = shown
        return transformer(
            hidden_states=latents,
            encoder_hidden_states=words,
            pooled_projections=pool,
            timestep=time.expand(1) / 1000,
            guidance=torch.tensor([3.5]),
            img_ids=ids,
            txt_ids=text_ids,
            return_dict=False,
        )[0]

    for index, time in enumerate(pipe.scheduler.timesteps):
        velocity = predict(time, text, pooled, condition)
        if index >= 2 and image_guidance > 1:
            nothing = predict(time, null, null_pooled, torch.zeros_like(condition))
            with_reference = predict(time, null, null_pooled, condition)
            velocity = (
                nothing + image_guidance * (with_reference - nothing) + text_guidance * (velocity - with_reference)
            )
        latents = pipe.scheduler.step(velocity, time, latents, return_dict=False)[0]
    unpacked = pipe._unpack_latents(latents, side, 2 * side, 8)
    decoded = pipe.vae.decode(unpacked / pipe.vae.config.scaling_factor + pipe.vae.config.shift_factor).sample
    image = VaeImageProcessor().postprocess(decoded, output_type="pil")[0]
    return latents, image.crop((side, 0, 2 * side, side))


@pytest.mark.parametrize(
    ("lora", "image", "text"),
    [
        *(("none", 1.0, 1.0), ("none", 1.3, 2.0)),
        *(("merged", 1.0, 1.0), ("merged", 1.3, 2.0), ("merged", 1.5, 1.5)),
        ("unmerged", 1.3, 2.0),
    ],
)
def test_latents_and_pixels_are_the_official_ones(lora: str, image: float, text: float) -> None:
    latents, expected = reference_pipeline(lora != "none", image, text)
    for batched in (False, True):
        guidance = {"image_guidance": image, "text_guidance": text, "batch_passes": batched}
        torch.testing.assert_close(draw(official(lora), **guidance), latents, rtol=0, atol=1e-4)
    output = draw(official(lora), image_guidance=image, text_guidance=text, output_type="pil")[0]
    difference = np.asarray(output, dtype=int) - np.asarray(expected, dtype=int)
    assert np.abs(difference).max() <= 1


@pytest.mark.long
def test_the_same_at_the_official_size() -> None:
    latents, _ = reference_pipeline(True, 1.3, 2.0, side=512)
    output = draw(
        official("merged"), image_guidance=1.3, text_guidance=2.0, height=512, width=512, latents=noise(side=512)
    )
    torch.testing.assert_close(output, latents, rtol=0, atol=1e-4)


def test_lora_and_guidance_matter_here() -> None:
    plain = draw(official())
    assert (draw(official("merged")) - plain).abs().max() > 0.01
    assert (draw(official(), image_guidance=1.3, text_guidance=2.0) - plain).abs().max() > 0.01
    assert (draw(official(), image=IMAGE.rotate(180)) - plain).abs().max() > 0.01
    assert (draw(official(), prompt="something else") - plain).abs().max() > 1e-3


def test_t5_reads_the_tokens_of_its_published_tokenizer() -> None:
    published = Tokenizer.from_file(str(BASE / "tokenizer_2" / "tokenizer.json"))
    ids = official().tokenizer_2(PROMPT).input_ids
    assert ids == published.encode(PROMPT).ids, "two spaces are two tokens here"


def test_the_middle_is_cropped_before_resizing() -> None:
    assert fit(IMAGE, 40, 40).size == (40, 40)
    expected = IMAGE.crop((27, 0, 127, 100)).resize((40, 40), Image.Resampling.BICUBIC)
    assert np.array_equal(fit(IMAGE, 40, 40), expected)
    assert fit(IMAGE, 64, 32).size == (32, 64)
    assert fit(IMAGE, 300, 900).size == (900, 300)
