"""A callback that acts at a given batch or validation."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import lightning as L


class At(L.Callback):
    """Calls something at the start of a batch, counted from 0, or of the validation after a step."""

    def __init__(self, act: Callable[[], Any], batch: int | None = None, validation: int | None = None) -> None:
        self.act, self.batch, self.validation = act, batch, validation

    def on_train_batch_start(self, trainer: L.Trainer, *_: Any) -> None:
        if trainer.fit_loop.epoch_loop.total_batch_idx == self.batch:
            self.act()

    def on_validation_batch_start(self, trainer: L.Trainer, *_: Any) -> None:
        if trainer.global_step == self.validation:
            self.act()
