"""Keeps EMA weights, and puts them in place of the trained ones for validation.

Validation uses the EMA weights: they are put in place when it starts, and the trained weights return when it ends or fails.
Callbacks that use the model during validation should do so in `on_validation_batch_*` or `on_validation_epoch_*`; which
weights are in place in `on_validation_start` and `on_validation_end` depends on the order of the callbacks. At any other
time `with ema_weights(trainer): ...` puts the EMA weights in place.
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
    """Float32 EMA weights of the trained parameters, updated after every optimizer step.

        weight <- decay_n * weight + (1 - decay_n) * parameter

    The checkpoint holds them as `checkpoint["ema"]`, under the names of `checkpoint["state_dict"]`. Logs `ema/decay`.

    Args:
        decay: in [0, 1); 0.999 averages over about the last 1000 steps.
        warmup: use decay_n = min(decay, (1 + n) / (10 + n)) after n updates, so that the EMA weights soon forget where
            training started. (TensorFlow's ExponentialMovingAverage with num_updates.)
    """

    def __init__(self, decay: float, warmup: bool = True) -> None:
        if not 0 <= decay < 1:
            raise ValueError(f"ema decay={decay}: give a value in [0, 1), such as 0.999")
        self.decay, self.warmup = decay, warmup
        self.updates = 0
        self.weights: dict[str, Tensor] = {}
        self._trained: dict[str, Tensor] = {}
        self._depth = 0
        self._step = 0

    def decay_after(self, updates: int) -> float:
        """Return the decay of the update that follows `updates` earlier ones."""
        return min(self.decay, (1 + updates) / (10 + updates)) if self.warmup else self.decay

    # --- Updates.

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Start from the trained weights as they are, or from a checkpoint's EMA weights, on the model's device."""
        parameters = _trained(pl_module)
        if not self.weights:
            self.weights = {name: value.detach().float().clone() for name, value in parameters.items()}
        if set(self.weights) != set(parameters):
            different = sorted(set(self.weights) ^ set(parameters))
            raise ValueError(f"the checkpoint's EMA weights are of another model; different: {different[:3]}")
        for name, value in parameters.items():
            self.weights[name] = sharded_like(self.weights[name].float(), value)
        self._step = trainer.global_step

    @torch.no_grad()
    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Update the EMA weights if this batch ended with an optimizer step."""
        if trainer.global_step == self._step:
            return
        self._step = trainer.global_step
        decay = self.decay_after(self.updates)
        self.updates += 1
        for name, value in _trained(pl_module).items():
            self.weights[name].lerp_(value.detach().float(), 1 - decay)
        pl_module.log("ema/decay", torch.tensor(decay))  # stays on the CPU: no copy to wait for

    # --- Exchange with the trained weights.

    @contextmanager
    def applied(self, module: L.LightningModule) -> Iterator[None]:
        """Put the EMA weights in place for the length of the block, whatever ends it. Blocks may be nested."""
        self._enter(module)
        try:
            yield
        finally:
            self._leave(module)

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Validate the EMA weights."""
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
        if self._depth == 1 and self.weights:
            parameters = _trained(module)
            self._trained = {name: value.detach().clone() for name, value in parameters.items()}
            for name, value in parameters.items():
                value.copy_(self.weights[name])

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
        """Return the number of updates; the EMA weights are saved separately in the checkpoint."""
        return {"updates": self.updates}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on counting."""
        self.updates = int(state_dict["updates"])

    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        """Add the EMA weights.

        Raises:
            RuntimeError: while the EMA weights replace the trained ones, which the checkpoint would then lack.
        """
        if self._depth:
            raise RuntimeError(
                "a checkpoint was requested while the EMA weights are in place; save after validation, outside of "
                "applied()"
            )
        checkpoint["ema"] = dict(self.weights)

    def on_load_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        """Read the EMA weights; without any in the checkpoint they start from its trained weights."""
        saved: Mapping[str, Tensor] = checkpoint.get("ema") or {}
        if not saved:
            log.warning("the checkpoint has no EMA weights; they start from its trained weights")
        self.weights = {name: value.float() for name, value in saved.items()}


@contextmanager
def ema_weights(trainer: L.Trainer) -> Iterator[None]:
    """Put the EMA weights of the trainer's ExponentialMovingAverage in place; without one, the trained weights stay."""
    for callback in getattr(trainer, "callbacks", ()):
        if isinstance(callback, ExponentialMovingAverage):
            with callback.applied(trainer.lightning_module):
                yield
            return
    yield


def _trained(module: L.LightningModule) -> dict[str, nn.Parameter]:
    return dict(module.architecture.trainable())  # type: ignore[operator, union-attr]
