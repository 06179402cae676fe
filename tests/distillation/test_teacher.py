"""A teacher is any text-to-image pipeline that diffusers opens, with images that depend on their seeds alone."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, EulerDiscreteScheduler, StableDiffusionXLPipeline, UNet2DConditionModel
from transformers import AutoTokenizer, CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from dsd_lightning.distillation.teacher import DiffusersTeacher


def tiny_sdxl(folder: Path, tokenizers: Path) -> Path:
    """Write SDXL with a few random weights."""
    tokenizer = AutoTokenizer.from_pretrained(tokenizers, subfolder="tokenizer")
    words = CLIPTextConfig(
        hidden_size=32,
        intermediate_size=37,
        num_attention_heads=4,
        num_hidden_layers=2,
        projection_dim=32,
        vocab_size=len(tokenizer),
        eos_token_id=tokenizer.eos_token_id,
    )
    kinds = {"down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        pipeline = StableDiffusionXLPipeline(
            vae=AutoencoderKL(block_out_channels=(32, 64), latent_channels=4, **kinds),
            text_encoder=CLIPTextModel(words),
            text_encoder_2=CLIPTextModelWithProjection(words),
            tokenizer=tokenizer,
            tokenizer_2=tokenizer,
            unet=UNet2DConditionModel(
                block_out_channels=(32, 64),
                layers_per_block=1,
                down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
                up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
                attention_head_dim=(2, 4),
                use_linear_projection=True,
                addition_embed_type="text_time",
                addition_time_embed_dim=8,
                transformer_layers_per_block=(1, 1),
                projection_class_embeddings_input_dim=80,
                cross_attention_dim=64,
            ),
            scheduler=EulerDiscreteScheduler(),
            add_watermarker=False,
        )
    pipeline.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("family", ["sdxl", "flux"])
def test_images_depend_on_prompt_and_seed_alone(family: str, tiny_base: Path, tmp_path: Path) -> None:
    if family == "sdxl":
        path = tiny_sdxl(tmp_path / "sdxl", tiny_base)
    else:
        path = tmp_path / "flux"
        path.mkdir()
        for part in tiny_base.iterdir():
            (path / part.name).symlink_to(part)
        index = Path(__file__).parents[2] / "assets" / "tiny-flux" / "model_index.json"
        (path / "model_index.json").write_text(index.read_text())
    settings = {"num_inference_steps": 2, "guidance_scale": 3.5, "max_sequence_length": 16, "dtype": "float32"}
    several = DiffusersTeacher(str(path), 64, 64, batch_size=2, device="cpu", **settings)  # type: ignore[arg-type]
    single = DiffusersTeacher(str(path), 64, 64, batch_size=1, device="cpu", **settings)  # type: ignore[arg-type]
    images = [
        np.asarray(image, dtype=int) for image in several.generate(["a red cube", "a red cube", "a cat"], [1, 2, 3])
    ]
    assert images[0].shape == (64, 64, 3)
    assert np.abs(images[0] - images[1]).max() > 8
    (again,) = single.generate(["a red cube"], [2])
    assert np.abs(np.asarray(again, dtype=int) - images[1]).max() <= 2
    assert "arguments" not in single.settings()
