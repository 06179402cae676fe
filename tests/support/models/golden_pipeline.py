"""The pipeline on the small official weights of tests/data/golden, and the inputs that it is called with."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import FluxPipeline
from PIL import Image
from torch import Tensor

from dsd_lightning.checkpoints.official import LORA_FILE
from dsd_lightning.pipeline import TwoFramePipeline
from dsd_lightning.randomness import normal

GOLDEN = Path(__file__).parents[2] / "data" / "golden"
BASE, TRANSFORMER, LORA = (
    GOLDEN / "tiny_flux_dev",
    GOLDEN / "tiny_official" / "transformer",
    GOLDEN / "tiny_official" / LORA_FILE,
)
SIDE, STEPS, PROMPT = 64, 4, "this character, reading  a book at the beach"

values = np.random.default_rng(0).integers(0, 256, (20, 31, 3), dtype=np.uint8)
IMAGE = Image.fromarray(values).resize((155, 100), Image.Resampling.BICUBIC)


@cache
def official(lora: str = "none") -> TwoFramePipeline:
    pipeline = TwoFramePipeline.load(
        BASE,
        TRANSFORMER,
        None if lora == "none" else LORA,
        dtype=torch.float32,
        default_size=SIDE,
        merge_lora=lora != "unmerged",
        device="cpu",
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def noise(seed: int = 0, batch: int = 1, side: int = SIDE) -> Tensor:
    return FluxPipeline._pack_latents(normal((batch, 4, side // 8, side // 4), seed), batch, 4, side // 8, side // 4)


def draw(pipeline: TwoFramePipeline, **given: Any) -> Any:
    given = {"image": IMAGE, "prompt": PROMPT, "num_inference_steps": STEPS, "output_type": "latent", **given}
    if "generator" not in given and "latents" not in given:
        given["latents"] = noise()
    return pipeline(**given).images
