"""A training step's cost is counted as it is, without a trace on the training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from support.tiny_run import Run, assert_same
from torch import nn

from callbacks.cost import StepCost
from callbacks.isolated_sampling import isolated_sampling
from dsd_lightning.planning.counters import CPU_ATTENTION, LiveTensors, Operations


def test_attention_counts_on_the_cpu_too() -> None:
    batch, heads, tokens, channels = 2, 3, 48, 16
    query = torch.randn(batch, heads, tokens, channels, requires_grad=True)
    with Operations(CPU_ATTENTION) as counted:
        output = nn.functional.scaled_dot_product_attention(query, query, query)
        product = 2 * batch * heads * tokens * tokens * channels
        assert counted.total == 2 * product  # scores, and their product with the values
        output.sum().backward()
    # Scores again, and the gradients of scores, values, queries and keys.
    assert counted.total == (2 + 5) * product


def test_live_tensors_are_counted_until_they_die() -> None:
    given, size = torch.zeros(1000), 4000
    with LiveTensors([given, given[:10]]) as live:
        assert live.now == size
        one = given + 1
        two = one + one
        view = two[5:]
        assert (live.now, live.peak) == (3 * size, 3 * size)
        del one, two
        assert live.now == 2 * size  # the view keeps its storage
        del view
    assert (live.now, live.peak) == (size, 3 * size)


def test_the_training_does_not_notice_that_its_step_is_measured(tmp_path: Path) -> None:
    watched, alone = Run(tmp_path / "watched", 4, StepCost()).fit(), Run(tmp_path / "alone", 4).fit()
    assert_same(watched.trained(), alone.trained())
    assert watched.recorder.losses == alone.recorder.losses
    metrics = watched.module.summary
    weights = sum(p.numel() * p.element_size() for p in watched.module.parameters())
    assert metrics["peak_memory_gib"] * 2**30 > weights  # type: ignore[operator]
    assert metrics["flops_per_pair"] > 0  # type: ignore[operator]


class Clock(L.Callback):
    """A clock that a step moves on by 1 s and a drawing by 100 s."""

    def __init__(self) -> None:
        self.now = 0.0

    def monotonic(self) -> float:
        return self.now

    def on_before_optimizer_step(self, *_: Any) -> None:
        self.now += 1

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
        with isolated_sampling(trainer, pl_module, ema=False):
            self.now += 100


def test_drawing_does_not_count_as_training_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    monkeypatch.setattr("callbacks.throughput.time", clock)
    run = Run(tmp_path, 4, clock).fit()
    metrics = {name: float(value) for name, value in run.trainer.callback_metrics.items()}
    assert metrics["throughput/pairs_per_second"] == 2  # two pairs a step
    assert metrics["throughput/data_share"] == 0
    assert run.module.summary["seconds_per_pair"] == 0.5  # type: ignore[index]


def test_the_time_a_pair_goes_on_over_a_resume(tmp_path: Path) -> None:
    Run(tmp_path, 3).fit()
    state = torch.load(tmp_path / "checkpoints" / "step_00000003" / "training_state.pt", weights_only=True)
    # Two pairs a step; the first step of the process is left out.
    assert state["throughput"]["pairs"] == 4
    run = Run(tmp_path, 5).fit(tmp_path / "checkpoints" / "step_00000003")
    state = torch.load(tmp_path / "checkpoints" / "step_00000005" / "training_state.pt", weights_only=True)
    assert state["throughput"]["pairs"] == 4 + 2
    assert run.module.summary["seconds_per_pair"] == pytest.approx(state["throughput"]["seconds"] / 6)  # type: ignore[index]
