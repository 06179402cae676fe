"""Lets a callback generate images with a model in training, without a trace on the training."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Protocol, cast, runtime_checkable

import lightning as L
import torch
from lightning.pytorch.utilities.seed import isolate_rng

from callbacks.ema import ema_weights
from dsd_lightning.compute.machine import compiled_as_in_steps, uncompiled
from dsd_lightning.module import DiffusionSelfDistillation


@runtime_checkable
class Clock(Protocol):
    """A callback that measures training time."""

    def leave_out(self) -> None:
        """Do not count the time until the next batch."""
        ...


@contextmanager
def isolated_sampling(
    trainer: L.Trainer, module: L.LightningModule, ema: bool, step_batch: int | None = None
) -> Iterator[None]:
    """Hold the module in evaluation mode without gradients, its encoders on its device, with its EMA weights if `ema`.

    Operations run in the trainer's precision, as in validation; `unconverted` leaves that. On exit every part is in the mode
    it was in (frozen parts are never in training mode), and the global random states are what they were.

    Args:
        step_batch: samples of a training step on this device; as many at once then run through the blocks that are compiled
            for these steps. None: compiled blocks run as written.
    """
    module = cast(DiffusionSelfDistillation, module)
    modes = {part: part.training for part in module.modules()}
    module.eval()
    weights = ema_weights(trainer) if ema else nullcontext()
    encoders = module.encoders_at_work()
    compiled = uncompiled() if step_batch is None else compiled_as_in_steps(module.architecture, step_batch)
    precision = trainer.precision_plugin.forward_context()
    try:
        with isolate_rng(), torch.no_grad(), compiled, weights, encoders, precision:
            yield
    finally:
        for part, mode in modes.items():
            part.training = mode
        leave_out(trainer)


def unconverted(module: L.LightningModule) -> AbstractContextManager[object]:
    """Return a context within `isolated_sampling` in which operations run in the dtype of their inputs, to score images."""
    return torch.autocast(module.device.type, enabled=False)


def leave_out(trainer: L.Trainer) -> None:
    """Exclude the time since the last step from what the trainer's clocks measure."""
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(callback, Clock):
            callback.leave_out()


class EveryNSteps:
    """Is due after every `interval` optimizer steps, except the run's last one.

    The run's last step is left to `on_train_end`, when all callbacks (EMA among them) have handled the step.
    """

    def __init__(self, interval: int | None, name: str) -> None:
        if interval is not None and interval < 1:
            raise ValueError(f"{name}={interval} must be at least 1 optimizer step, or null for never")
        self.interval = interval
        self.last_step = 0

    def start(self, trainer: L.Trainer) -> None:
        """Count from where the run starts or resumes."""
        self.last_step = trainer.global_step

    def due(self, trainer: L.Trainer) -> bool:
        """Return whether the optimizer has just made such a step."""
        step = trainer.global_step
        is_new, self.last_step = step != self.last_step, step
        return bool(self.interval and is_new and step % self.interval == 0 and step != trainer.max_steps)
