"""A training step on random encodings, and the peak of the memory that it holds."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from dsd_lightning.architectures.base import Architecture
from dsd_lightning.architectures.ip_adapter import IPAdapter
from dsd_lightning.objective import frame_losses
from dsd_lightning.pairs import Condition, Encoded, TextEmbeddings
from dsd_lightning.planning.counters import LiveTensors
from dsd_lightning.randomness import normal

BATCH, TEXT, SIDE = 2, 32, 128
"""Pairs; T5 tokens; pixels of a frame's side (64 image tokens)."""


def transformer(dtype: torch.dtype, device: str = "cpu") -> Any:
    """Return a transformer of one and three blocks, of a width at which activations outweigh what does not grow with it."""
    from diffusers import FluxTransformer2DModel

    with torch.random.fork_rng(), torch.device(device):
        torch.manual_seed(0)
        model = FluxTransformer2DModel(
            in_channels=64,
            num_layers=1,
            num_single_layers=3,
            attention_head_dim=32,
            num_attention_heads=4,
            joint_attention_dim=128,
            pooled_projection_dim=8,
            guidance_embeds=True,
            axes_dims_rope=(8, 12, 12),
        )
    return torch.nn.Module.to(model, dtype).requires_grad_(False)


def loss_of(architecture: Architecture) -> Tensor:
    """Return the loss of a batch with random encodings."""
    dtype = architecture.transformer.context_embedder.weight.dtype
    side = SIDE // 8
    canvas = (BATCH, 16, side, side * len(architecture.frames))
    if isinstance(architecture, IPAdapter):
        tower = architecture.image_encoder
        shape = (BATCH, 17, tower.patch_width) if "plus" in architecture.name else (BATCH, tower.pooled_width)
        reference = {"image_embedding": normal(shape, "reference")}
    elif architecture.name == "parallel":
        reference = {"canvas": normal(canvas, "reference")}
    else:
        reference = {} if architecture.name == "text_only" else {"latents": normal(canvas, "reference")}
    reference = {name: value.to(dtype) for name, value in reference.items()}
    text = TextEmbeddings(normal((BATCH, TEXT, 128), "text").to(dtype), normal((BATCH, 8), "pooled").to(dtype))
    encoded = Encoded(normal(canvas, "clean").to(dtype), reference)
    condition = Condition(text, torch.full((BATCH,), 1.0), reference)
    noise, timestep = normal(canvas, "noise").to(dtype), torch.full((BATCH,), 0.5)
    weights = dict.fromkeys(architecture.frames, 1.0)
    return frame_losses(architecture, encoded, condition, noise, timestep, weights).total


def peak_of(architecture: Architecture) -> int:
    """Return the most bytes that a step really holds beside the weights."""
    live = LiveTensors([*architecture.parameters(), *architecture.buffers()])
    start = live.now
    with live:
        loss_of(architecture).backward()
    return live.peak - start
