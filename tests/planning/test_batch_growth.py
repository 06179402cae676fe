"""A step that is traced once predicts the memory and the operations of a step at every batch size."""

from __future__ import annotations

from pathlib import Path

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

NO_DIVISOR = 2**61 - 1
"""A prime that is larger than any tensor."""


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
def test_a_traced_step_predicts_every_batch(
    rank: int, checkpointing: str | int, monkeypatch: pytest.MonkeyPatch
) -> None:
    planned = cost(rank, checkpointing)
    # The same step at a batch of its own, counted as it is: nothing is held to grow.
    monkeypatch.setattr(meta_step, "cost_of", lambda step, batch: counters.cost_of(step, NO_DIVISOR))
    for batch in (1, 4):
        monkeypatch.setattr(meta_step, "BATCH", batch)
        alone = cost(rank, checkpointing)
        for share in (1.0, 0.125):
            expected = alone.activations(0, share)
            assert planned.activations(batch, share) == pytest.approx(expected, rel=0.1 if batch == 1 else 1e-4), batch
        assert planned.training * batch == pytest.approx(alone.training * NO_DIVISOR, rel=1e-3)


def test_constants_and_slopes_are_told_apart() -> None:
    # Number 1 is a constant of 5, number 2 takes 7 a sample, number 3 is a gradient of 11.
    events = ((1, 5), (2, 7 * 13), (2, -7 * 13), (3, 11), (1, -5))
    planned = cost_of(Traced(10 * 13, 30 * 13, events, frozenset({3})), 13)
    for samples in (1, 2, 10):
        assert planned.activations(samples, gradients=0.0) == 5 + 7 * samples
        assert planned.activations(samples, gradients=1.0) == max(5 + 7 * samples - 11, 5)
    assert (planned.forward, planned.training) == (10, 30)
