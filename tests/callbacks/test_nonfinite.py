"""A loss or gradient that is not finite leaves no trace on the training; many of them end it in order."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from support.tiny_run import Run, assert_same

from callbacks.nonfinite import NonFiniteGuard
from callbacks.stopping import Diverged
from dsd_lightning.checkpoints.folder_io import find_last, list_steps


class Poison(L.Callback):
    """Makes the gradients of some steps infinite or NaN."""

    def __init__(self, *steps: int, value: float = float("nan")) -> None:
        self.steps, self.value = steps, value
        self.weights: dict[int, dict[str, torch.Tensor]] = {}

    def on_after_backward(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.global_step in self.steps:
            parameter = next(p for _, p in pl_module.architecture.trainable())  # type: ignore[operator, union-attr]
            parameter.grad.view(-1)[0] = self.value

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
        trained = pl_module.architecture.trainable()  # type: ignore[operator, union-attr]
        self.weights[trainer.global_step] = {name: value.detach().clone() for name, value in trained}


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_the_step_is_left_out_and_counted(tmp_path: Path, value: float) -> None:
    poison = Poison(2, value=value)
    run = Run(tmp_path, 5, NonFiniteGuard(tmp_path / "nonfinite"), poison).fit()
    assert_same(poison.weights[2], poison.weights[3])
    assert any(not torch.equal(value, poison.weights[4][name]) for name, value in poison.weights[3].items())
    assert all(torch.isfinite(value).all() for value in run.trained().values())
    assert float(run.trainer.callback_metrics["optimizer/skipped_steps"]) == 1
    (report,) = (tmp_path / "nonfinite").iterdir()
    facts = json.loads(report.read_text())
    assert (report.name, facts["step"]) == ("step_00000002_device_0.json", 2)
    assert [each["key"] for each in facts["samples"]] == ["2a", "2b"]


def test_a_loss_that_is_not_finite_is_enough(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = Run(tmp_path, 4, NonFiniteGuard(tmp_path / "nonfinite"))
    original = run.module.training_step

    def infinite(*arguments: Any) -> torch.Tensor:
        loss = original(*arguments)
        return loss + float("inf") if run.trainer.global_step == 1 else loss  # its gradients are finite

    monkeypatch.setattr(run.module, "training_step", infinite)
    run.fit()
    assert float(run.trainer.callback_metrics["optimizer/skipped_steps"]) == 1


def test_many_in_a_row_end_the_run_before_the_first_of_them(tmp_path: Path) -> None:
    guard = NonFiniteGuard(tmp_path / "nonfinite", in_a_row=3)
    with pytest.raises(Diverged, match=r"3 steps in a row.*nonfinite.*ckpt=last"):
        Run(tmp_path, 20, guard, Poison(4, 5, 6, 7, 8, 9), every=1, keep=9).fit()
    assert max(list_steps(tmp_path / "checkpoints")) == 4
    assert len(list((tmp_path / "nonfinite").iterdir())) == 3
    # Without the poison it goes on as if nothing had happened.
    resumed = Run(tmp_path, 8, NonFiniteGuard(tmp_path / "nonfinite")).fit(find_last(tmp_path / "checkpoints"))
    straight = Run(tmp_path / "straight", 8).fit()
    assert_same(resumed.trained(), straight.trained())


def test_the_count_goes_on_over_a_resume(tmp_path: Path) -> None:
    Run(tmp_path, 3, NonFiniteGuard(tmp_path / "nonfinite"), Poison(1)).fit()
    guard = NonFiniteGuard(tmp_path / "nonfinite")
    Run(tmp_path, 5, guard, Poison(3)).fit(find_last(tmp_path / "checkpoints"))
    assert guard.skipped == 2


def test_wrong_settings_are_refused() -> None:
    with pytest.raises(ValueError, match=r"in_a_row=0"):
        NonFiniteGuard("x", in_a_row=0)
