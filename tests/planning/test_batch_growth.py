"""Two traced steps tell the memory of a step at every batch size."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from support.commands import compose_train

from dsd_lightning.compute.gradient_checkpointing import checkpoint_blocks
from dsd_lightning.models.build import build_architecture
from dsd_lightning.planning import counters, meta_step
from dsd_lightning.planning.counters import Cost, Traced, cost_of

MIDDLE = {
    "in_channels": 64,
    "num_layers": 1,
    "num_single_layers": 2,
    "attention_head_dim": 64,
    "num_attention_heads": 16,
    "joint_attention_dim": 1024,
    "pooled_projection_dim": 768,
    "guidance_embeds": True,
    "axes_dims_rope": [16, 24, 24],
}
"""A third of FLUX.1-dev's width."""


def cost(rank: int, checkpointing: str | int) -> Cost:
    choices = ["base=flux_dev", f"arch.lora.rank={rank}", "base.model.initialise=meta"]
    config = compose_train(Path("run"), *choices)
    config.base.model.transformer_config = MIDDLE
    architecture = build_architecture(config)
    checkpoint_blocks(architecture, checkpointing)
    return meta_step.step_cost(architecture, (256, 256), 128, {"target": 1.0, "reference": 0.5}, autocast=True)


CASES = [
    pytest.param(rank, choice, marks=() if (rank, choice) == (512, "none") else pytest.mark.long)
    for rank in (64, 512)
    for choice in ("none", 2, "all")
]


@pytest.mark.slow
@pytest.mark.parametrize(("rank", "checkpointing"), CASES)
def test_two_traced_batches_tell_every_other(
    rank: int, checkpointing: str | int, monkeypatch: pytest.MonkeyPatch
) -> None:
    planned = cost(rank, checkpointing)

    alone: dict[int, Cost] = {}

    def keep_apart(small: Traced, large: Traced, batches: tuple[int, int]) -> Cost:
        for batch, step in zip(batches, (small, large), strict=True):
            alone[batch] = counters.cost_of(step, step, (batch, batch + 1))
        return alone[batches[0]]

    monkeypatch.setattr(meta_step, "cost_of", keep_apart)
    for batches in ((1, 2), (4, 5)):
        monkeypatch.setattr(meta_step, "BATCHES", batches)
        cost(rank, checkpointing)
    assert sorted(alone) == [1, 2, 4, 5]
    for batch, traced in alone.items():
        for share in (1.0, 0.125):
            expected = traced.activations(0, share)
            assert planned.activations(batch, share) == pytest.approx(expected, rel=0.1), (batch, share)
        assert planned.training == pytest.approx(traced.training, rel=1e-3)


def traced(history: list[tuple[int, int]], gradients: set[int]) -> Traced:
    return Traced(10, 30, tuple(history), frozenset(gradients))


def test_constants_and_slopes_are_told_apart() -> None:
    # Number 1 is a constant of 5, number 2 takes 7 a sample, number 3 is a gradient of 11.
    def events(samples: int) -> list[tuple[int, int]]:
        return [(1, 5), (2, 7 * samples), (2, -7 * samples), (3, 11), (1, -5)]

    found = cost_of(traced(events(2), {3}), traced(events(3), {3}), (2, 3))
    for samples in (1, 2, 10):
        assert found.activations(samples, gradients=0.0) == 5 + 7 * samples
        assert found.activations(samples, gradients=1.0) == max(5 + 7 * samples - 11, 5)
    assert (found.forward, found.training) == (5, 15)


@pytest.mark.parametrize("other", [[(1, 5)], [(2, 5), (1, 5)]])
def test_steps_of_other_operations_are_refused(other: Any) -> None:
    with pytest.raises(ValueError, match="different operations"):
        cost_of(traced([(1, 5), (2, 5)], set()), traced(other, set()), (2, 3))
