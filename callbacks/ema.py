"""How are the averaged weights kept, and who sees them when?

Validation runs on the averages: they are put in place when it starts and the trained weights come back when it ends or
fails. Callbacks that look at the model during validation should do so between the two, in `on_validation_batch_*` or
`on_validation_epoch_*`; in `on_validation_start` and `on_validation_end` themselves, what they see depends on their place
in the list of callbacks. At any other time they may ask for the averages: `with ema_weights(trainer): ...`.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import lightning as L
import torch
from torch import Tensor, nn

from dsd_lightning.compute.dtensors import sharded_like

log = logging.getLogger(__name__)


class ExponentialMovingAverage(L.Callback):
    """Float32 averages of the trained parameters, updated after every optimizer step.

        average <- decay_n * average + (1 - decay_n) * parameter

    The checkpoint holds them as `checkpoint["ema"]`, under the names of `checkpoint["state_dict"]`. Logs `ema/decay`.

    Args:
        decay: in [0, 1); 0.999 averages over about the last 1000 steps.
        warmup: use decay_n = min(decay, (1 + n) / (10 + n)) after n updates, so that the averages soon forget where
            training started. (TensorFlow's ExponentialMovingAverage with num_updates.)
    """

    def __init__(self, decay: float, warmup: bool = True) -> None:
        if not 0 <= decay < 1:
            raise ValueError(f"ema decay={decay}: give a value in [0, 1), such as 0.999")
        self.decay, self.warmup = decay, warmup
        self.updates = 0
        self.averages: dict[str, Tensor] = {}
        self._trained: dict[str, Tensor] = {}
        self._depth = 0
        self._step = 0

    def decay_after(self, updates: int) -> float:
        """Return the decay of the update that follows `updates` earlier ones."""
        return min(self.decay, (1 + updates) / (10 + updates)) if self.warmup else self.decay

    # --- Keeping the averages.

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Start from the trained weights as they are, or go on from a checkpoint's averages, on the model's device."""
        parameters = _trained(pl_module)
        if not self.averages:
            self.averages = {name: value.detach().float().clone() for name, value in parameters.items()}
        if set(self.averages) != set(parameters):
            different = sorted(set(self.averages) ^ set(parameters))
            raise ValueError(f"the checkpoint's averages are not those of this model; different: {different[:3]}")
        for name, value in parameters.items():
            self.averages[name] = sharded_like(self.averages[name].float(), value)
        self._step = trainer.global_step

    @torch.no_grad()
    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Update the averages if this batch ended with an optimizer step."""
        if trainer.global_step == self._step:
            return
        self._step = trainer.global_step
        decay = self.decay_after(self.updates)
        self.updates += 1
        for name, value in _trained(pl_module).items():
            self.averages[name].lerp_(value.detach().float(), 1 - decay)
        pl_module.log("ema/decay", decay)

    # --- Putting them in place.

    @contextmanager
    def averaged(self, module: L.LightningModule) -> Iterator[None]:
        """Put the averages in place for the length of the block, whatever ends it. Blocks may be nested."""
        self._enter(module)
        try:
            yield
        finally:
            self._leave(module)

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Validate the averages."""
        self._enter(pl_module)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Go on with the trained weights."""
        self._leave(pl_module)

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        """Put the trained weights back, so that a checkpoint saved now holds them."""
        self._depth = min(self._depth, 1)
        self._leave(pl_module)

    @torch.no_grad()
    def _enter(self, module: L.LightningModule) -> None:
        self._depth += 1
        if self._depth == 1 and self.averages:
            parameters = _trained(module)
            self._trained = {name: value.detach().clone() for name, value in parameters.items()}
            for name, value in parameters.items():
                value.copy_(self.averages[name])

    @torch.no_grad()
    def _leave(self, module: L.LightningModule) -> None:
        if self._depth == 0:
            return
        self._depth -= 1
        if self._depth == 0 and self._trained:
            for name, value in _trained(module).items():
                value.copy_(self._trained[name])
            self._trained = {}

    # --- Checkpoints.

    def state_dict(self) -> dict[str, Any]:
        """Return the number of updates; the averages are a part of their own in the checkpoint."""
        return {"updates": self.updates}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on counting."""
        self.updates = int(state_dict["updates"])

    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        """Add the averages.

        Raises:
            RuntimeError: while the averages stand in for the trained weights, which the checkpoint would then lack.
        """
        if self._depth:
            raise RuntimeError(
                "a checkpoint was asked for while the averaged weights are in place; save after validation, outside of "
                "averaged()"
            )
        checkpoint["ema"] = dict(self.averages)

    def on_load_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        """Take the averages over; a checkpoint without them starts them from its trained weights."""
        averages: Mapping[str, Tensor] = checkpoint.get("ema") or {}
        if not averages:
            log.warning("the checkpoint has no averaged weights; averaging starts from its trained ones")
        self.averages = {name: value.float() for name, value in averages.items()}


@contextmanager
def ema_weights(trainer: L.Trainer) -> Iterator[None]:
    """Put the averages of the trainer's ExponentialMovingAverage in place; without one, the weights stay as they are."""
    for callback in getattr(trainer, "callbacks", ()):
        if isinstance(callback, ExponentialMovingAverage):
            with callback.averaged(trainer.lightning_module):
                yield
            return
    yield


def _trained(module: L.LightningModule) -> dict[str, nn.Parameter]:
    return dict(module.architecture.trainable())  # type: ignore[operator, union-attr]
