"""Batches whose loss jumps are listed with their samples, and others are not."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from support.tiny_run import Run

from callbacks.spikes import LossSpikes
from dsd_lightning.randomness import normal


class Log:
    """Stands where the module logs to."""

    def __init__(self) -> None:
        self.values: list[float] = []

    def log(self, name: str, value: float, **_: Any) -> None:
        assert name == "train/loss_spikes"
        self.values.append(value)


def feed(callback: LossSpikes, losses: list[float], first: int = 0, accumulate: int = 1) -> Log:
    trainer: Any = SimpleNamespace(global_rank=0, accumulate_grad_batches=accumulate, global_step=0)
    seen: Any = Log()
    callback.on_train_start(trainer, seen)
    for number, loss in enumerate(losses, first):
        trainer.global_step = number
        batch = SimpleNamespace(keys=[f"sample-{number}"], epochs=[0])
        callback.on_train_batch_end(trainer, seen, {"loss": torch.tensor(loss / accumulate)}, batch, number)
    callback.on_train_end(trainer, seen)
    return seen


def losses_of(count: int) -> list[float]:
    return (0.4 + 0.02 * normal((count,), "losses")).tolist()


@pytest.mark.parametrize("accumulate", [1, 4])
def test_jumps_are_listed_and_noise_is_not(tmp_path: Path, accumulate: int) -> None:
    callback = LossSpikes(tmp_path, warm_up=50, every_n_batches=10)
    losses = losses_of(300)
    losses[120] = losses[121] = 0.9
    losses[200] = float("nan")
    seen = feed(callback, losses, accumulate=accumulate)
    assert seen.values[-1] == callback.count == 2
    lines = [json.loads(line) for line in (tmp_path / "device_0.jsonl").read_text().splitlines()]
    assert [(line["step"], line["samples"]) for line in lines] == [
        (number, [{"key": f"sample-{number}", "epoch": 0}]) for number in (120, 121)
    ]
    assert lines[0]["loss"] == pytest.approx(0.9)
    assert lines[0]["mean"] == pytest.approx(0.4, abs=0.01)
    assert lines[0]["deviation"] == pytest.approx(0.02, abs=0.01)


def test_a_loss_that_falls_is_no_spike(tmp_path: Path) -> None:
    callback = LossSpikes(tmp_path, warm_up=10, every_n_batches=7)
    feed(callback, [1.0 - 0.002 * number + 0.01 * (number % 3) for number in range(300)])
    assert callback.count == 0
    assert not list(tmp_path.iterdir())


def test_a_lasting_change_is_soon_no_news(tmp_path: Path) -> None:
    callback = LossSpikes(tmp_path, warm_up=50, every_n_batches=10)
    feed(callback, [*losses_of(100), *(1.0 + loss for loss in losses_of(400))])
    assert 1 <= callback.count <= 20


def test_it_goes_on_as_if_it_had_not_stopped(tmp_path: Path) -> None:
    losses = losses_of(200)
    losses[150] = 2.0
    whole, first, second = (LossSpikes(tmp_path / name, warm_up=50) for name in ("whole", "first", "second"))
    feed(whole, losses)
    feed(first, losses[:77])
    second.load_state_dict(first.state_dict())
    feed(second, losses[77:], first=77)
    assert second.state_dict() == whole.state_dict()
    assert whole.count == 1


def test_a_run_counts_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = Run(tmp_path, 12, LossSpikes(tmp_path / "spikes", warm_up=4, every_n_batches=1))
    original = run.module.training_step

    def jumping(*arguments: Any) -> torch.Tensor:
        loss = original(*arguments)
        return loss + 1000.0 if run.trainer.global_step == 9 else loss

    monkeypatch.setattr(run.module, "training_step", jumping)
    run.fit()
    assert float(run.trainer.callback_metrics["train/loss_spikes"]) >= 1
    listed = (tmp_path / "spikes" / "device_0.jsonl").read_text()
    assert '"9a"' in listed


@pytest.mark.parametrize("wrong", [{"deviations": 0}, {"decay": 1.0}, {"warm_up": 1}, {"every_n_batches": 0}])
def test_wrong_settings_are_refused(tmp_path: Path, wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"callbacks\.spikes"):
        LossSpikes(tmp_path, **wrong)
