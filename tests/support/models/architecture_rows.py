"""Architectures that every law is tested on: how each is built, and what is true of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import FluxTransformer2DModel
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from omegaconf import OmegaConf
from torch import Tensor

from dsd_lightning.architectures.base import Architecture
from dsd_lightning.pairs import Condition, Encoded, TextEmbeddings
from dsd_lightning.randomness import normal

ROOT = Path(__file__).parents[3]


CONF = ROOT / "conf" / "arch"


BATCH, SIZE = 2, 32  # samples; pixels of a frame's side


def configured(name: str, **overrides: Any) -> Callable[[FluxTransformer2DModel], Architecture]:
    """Return what `arch=NAME` builds, with factors of rank 4 where it has any."""
    with initialize_config_dir(str(CONF.parent), version_base=None):
        config = compose(overrides=[f"+arch={name}"]).arch
    if config.lora is not None:
        config.lora.rank = 4
    for key, value in overrides.items():
        config[key] = value

    def build(transformer: FluxTransformer2DModel) -> Architecture:
        architecture: Architecture = instantiate(config)(transformer)
        return architecture

    return build


@dataclass(frozen=True)
class Row:
    """How to build an architecture, and what is true of it."""

    build: Callable[[FluxTransformer2DModel], Architecture]
    uses_reference: bool = True
    starts_as_base: bool = True
    trains_base: bool = False


FACTORS = OmegaConf.load(CONF / "lora" / "all_linear.yaml")  # +arch/lora=all_linear


ENCODER = {"_target_": "support.models.toy_models.image_encoder"}


ROWS = {
    "parallel": Row(configured("parallel")),
    "concat": Row(configured("concat")),
    "concat-without_lora": Row(configured("concat", lora=None)),
    "controlnet": Row(configured("controlnet")),
    "controlnet-with_lora": Row(configured("controlnet", lora=FACTORS)),
    "reference_tokens": Row(configured("reference_tokens"), starts_as_base=False),
    "reference_tokens-separate_pass": Row(configured("reference_tokens", separate_pass=True), starts_as_base=False),
    "ip_adapter": Row(configured("ip_adapter", image_encoder=ENCODER)),
    "ip_adapter-with_lora": Row(configured("ip_adapter", image_encoder=ENCODER, lora=FACTORS)),
    "ip_adapter_plus": Row(configured("ip_adapter_plus", image_encoder=ENCODER)),
    "text_only": Row(configured("text_only"), uses_reference=False),
    "text_only-whole": Row(configured("text_only", train_base=True, lora=None), uses_reference=False, trains_base=True),
}


def base(dtype: torch.dtype = torch.float32) -> FluxTransformer2DModel:
    """Return a transformer of two blocks; its weights are random, and the same at each call."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        transformer = FluxTransformer2DModel(
            in_channels=24,
            num_layers=1,
            num_single_layers=1,
            attention_head_dim=16,
            num_attention_heads=2,
            joint_attention_dim=16,
            pooled_projection_dim=8,
            guidance_embeds=True,
            axes_dims_rope=(4, 6, 6),
        )
    return transformer.to(dtype).requires_grad_(False)


def images(name: str) -> Tensor:
    """Return smooth coloured images [BATCH, 3, SIZE, SIZE]."""
    coarse = normal((BATCH, 3, 4, 4), "images", name).clamp(-1, 1)
    return torch.nn.functional.interpolate(coarse, size=(SIZE, SIZE), mode="bilinear")


def with_random_weights(architecture: Architecture) -> Architecture:
    """Return it as if it had been trained."""
    with torch.no_grad():
        for name, parameter in architecture.trainable():
            parameter.copy_(0.2 * normal(parameter.shape, "trained", name))
    return architecture


def condition_of(encoded: Encoded) -> Condition:
    # Values whose thousandfold bfloat16 holds exactly: diffusers rounds after multiplying.
    text = TextEmbeddings(normal((BATCH, 5, 16), "text"), normal((BATCH, 8), "pooled"))
    return Condition(text, torch.full((BATCH,), 1.0), encoded.reference)


TIMES = torch.tensor([0.5, 0.25])
