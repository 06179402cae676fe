"""Does recomputing blocks change nothing but memory, and does the plan know how much?"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from test_architectures import ROWS
from torch import Tensor

from dsd_lightning.architectures.base import Architecture
from dsd_lightning.architectures.ip_adapter import IPAdapter
from dsd_lightning.flux.cost import FLOAT32, Cost, LiveTensors, is_recomputed
from dsd_lightning.objective import frame_losses
from dsd_lightning.pairs import Condition, Encoded, TextEmbeddings
from dsd_lightning.parallelism.recompute import recompute
from dsd_lightning.randomness import normal
from dsd_lightning.trial import step_cost

BATCH, TEXT, SIDE = 2, 32, 128
"""Pairs; T5 tokens; pixels of a frame's side (64 image tokens)."""

CHOICES: tuple[str | int, ...] = ("none", 2, "all")


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


def with_random_weights(architecture: Architecture) -> Architecture:
    with torch.no_grad():
        for name, parameter in architecture.trainable():
            parameter.copy_(0.1 * normal(parameter.shape, "trained", name))
    return architecture


@pytest.mark.parametrize("row", ROWS)
def test_gradients_do_not_change(row: str) -> None:
    gradients = []
    for choice in CHOICES:
        architecture = with_random_weights(ROWS[row].build(transformer(torch.float32)))
        recompute(architecture, choice)
        loss = loss_of(architecture)
        loss.backward()
        gradients.append({"loss": loss.detach(), **{name: p.grad for name, p in architecture.trainable()}})
    for other in gradients[1:]:
        assert other.keys() == gradients[0].keys()
        for name, value in gradients[0].items():
            assert value is not None
            assert torch.equal(value, other[name]), name


def test_which_blocks_are_recomputed() -> None:
    assert [is_recomputed(i, 3) for i in range(7)] == [True, False, False, True, False, False, True]
    assert not any(is_recomputed(i, "none") for i in range(7))
    assert all(is_recomputed(i, choice) for i in range(7) for choice in ("all", 1))
    for wrong in ("some", 0, True):
        with pytest.raises(ValueError, match=r"recompute=.*choose none, all"):
            is_recomputed(0, wrong)


# --- The plan's memory against a step's.


def peak_of(architecture: Architecture) -> int:
    """Return the most bytes that a step really holds beside the weights."""
    live = LiveTensors([*architecture.parameters(), *architecture.buffers()])
    start = live.now
    with live:
        loss_of(architecture).backward()
    return live.peak - start


def predicted(row: str, dtype: torch.dtype, choice: str | int) -> tuple[Cost, int]:
    architecture = ROWS[row].build(transformer(dtype, "meta")).to("meta")
    recompute(architecture, choice)
    trained = sum(p.numel() for _, p in architecture.trainable())
    weights = dict.fromkeys(architecture.frames, 1.0)
    return step_cost(architecture, (SIDE, SIDE), TEXT, weights), trained


CASES = [
    *((row, torch.float32, choice) for row in ROWS for choice in CHOICES),
    *(("parallel", torch.bfloat16, choice) for choice in CHOICES),
]


@pytest.mark.parametrize(("row", "dtype", "choice"), CASES)
def test_the_planned_peak_is_that_of_a_step(row: str, dtype: torch.dtype, choice: str | int) -> None:
    architecture = ROWS[row].build(transformer(dtype))
    recompute(architecture, choice)
    cost, trained = predicted(row, dtype, choice)
    # Planned from one sample; the step has two.
    planned = cost.activations(BATCH) + trained * FLOAT32
    assert planned == pytest.approx(peak_of(architecture), rel=0.1)


def test_recomputing_saves_memory_and_costs_operations() -> None:
    none, half, everything = (predicted("parallel", torch.float32, choice)[0] for choice in CHOICES)
    assert none.activations(1) > half.activations(1) > everything.activations(1)
    assert none.training < half.training < everything.training
    assert none.forward == half.forward == everything.forward
    blocks = everything.training - none.training
    assert blocks == pytest.approx(none.forward, rel=0.05)  # but for the embedders
