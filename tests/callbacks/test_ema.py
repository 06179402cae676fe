"""EMA weights follow their formula, and are in place exactly when they should be."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from support.tiny_run import Run, assert_same, make_module

from callbacks.ema import ExponentialMovingAverage, ema_weights


class Trajectory(L.Callback):
    """Notes the trained weights after every optimizer step, and the weights that validation sees."""

    def __init__(self) -> None:
        self.steps: list[dict[str, torch.Tensor]] = []
        self.validated: list[dict[str, torch.Tensor]] = []
        self.count = 0

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.steps.append(weights(pl_module))

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
        if trainer.global_step != self.count:
            self.count = trainer.global_step
            self.steps.append(weights(pl_module))

    def on_validation_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
        self.validated.append(weights(pl_module))


def weights(module: L.LightningModule) -> dict[str, torch.Tensor]:
    return {name: value.detach().clone() for name, value in module.architecture.trainable()}  # type: ignore[operator, union-attr]


@pytest.mark.parametrize("accumulate", [1, 2])
def test_ema_weights_follow_the_formula_once_an_optimizer_step(tmp_path: Path, accumulate: int) -> None:
    trajectory = Trajectory()
    run = Run(tmp_path, 6, trajectory, accumulate=accumulate).fit()
    assert run.ema.updates == 6
    assert len(trajectory.steps) == 7
    for name, average in run.ema.weights.items():
        expected = trajectory.steps[0][name].double()
        for n, after in enumerate(trajectory.steps[1:]):
            decay = min(0.9, (1 + n) / (10 + n))
            expected = decay * expected + (1 - decay) * after[name].double()
        torch.testing.assert_close(average.double(), expected, rtol=1e-5, atol=1e-7)
        assert not torch.equal(average, trajectory.steps[-1][name])


def test_validation_uses_the_ema_weights_and_training_the_trained_ones(tmp_path: Path) -> None:
    with_ema, without = Trajectory(), Trajectory()
    run = Run(tmp_path / "with", 5, with_ema).fit()
    plain = Run(tmp_path / "without", 5, without)
    plain.trainer.callbacks.remove(plain.ema)
    plain.fit()
    for left, right in zip(with_ema.steps, without.steps, strict=True):
        assert_same(left, right)
    # After step 4 both batches were validated with EMA weights, which are not the trained weights of that step.
    assert len(with_ema.validated) == 2
    assert_same(with_ema.validated[0], with_ema.validated[1])
    assert any(not torch.equal(value, with_ema.steps[4][name]) for name, value in with_ema.validated[0].items())
    assert_same(without.validated[0], without.steps[4])
    assert run.recorder.validations != plain.recorder.validations


def test_block_puts_trained_weights_back_whatever_ends_it() -> None:
    module = make_module()
    ema = ExponentialMovingAverage(0.9)
    trained = weights(module)
    ema.weights = {name: value + 1 for name, value in trained.items()}
    with ema.applied(module):
        with ema.applied(module):
            assert_same(weights(module), ema.weights)
        assert_same(weights(module), ema.weights)
    assert_same(weights(module), trained)
    with pytest.raises(ZeroDivisionError), ema.applied(module):
        raise ZeroDivisionError
    assert_same(weights(module), trained)


def test_trained_weights_come_back_when_validation_fails(tmp_path: Path) -> None:
    class Fails(L.Callback):
        def on_validation_batch_start(self, *_: Any) -> None:
            raise ZeroDivisionError

    trajectory = Trajectory()
    run = Run(tmp_path, 6, trajectory, Fails())
    with pytest.raises(ZeroDivisionError):
        run.fit()
    assert_same(run.trained(), trajectory.steps[4])


def test_no_checkpoint_is_saved_while_ema_weights_are_in_place(tmp_path: Path) -> None:
    class Saves(L.Callback):
        def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
            trainer.save_checkpoint(tmp_path / "wrong")

    with pytest.raises(RuntimeError, match="EMA weights are in place"):
        Run(tmp_path, 6, Saves()).fit()
    assert not (tmp_path / "wrong").exists()


def test_other_callbacks_may_use_the_ema_weights(tmp_path: Path) -> None:
    run = Run(tmp_path, 3).fit()
    trained = weights(run.module)
    with ema_weights(run.trainer):
        assert_same(weights(run.module), run.ema.weights)
    run.trainer.callbacks.remove(run.ema)
    with ema_weights(run.trainer):
        assert_same(weights(run.module), trained)


def test_decay_warms_up_to_its_value() -> None:
    decays = [ExponentialMovingAverage(0.99).decay_after(n) for n in (0, 8, 10_000)]
    assert decays == [0.1, 0.5, 0.99]
    assert ExponentialMovingAverage(0.99, warmup=False).decay_after(0) == 0.99


@pytest.mark.parametrize("decay", [1.0, -0.1])
def test_impossible_decay_is_refused(decay: float) -> None:
    with pytest.raises(ValueError, match=str(decay)):
        ExponentialMovingAverage(decay)
