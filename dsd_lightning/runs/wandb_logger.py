"""Sends a run's metrics and images to W&B without W&B's warnings of settings that nobody gave."""

from __future__ import annotations

from typing import Any

from lightning.fabric.loggers.logger import rank_zero_experiment
from lightning.pytorch.loggers import WandbLogger


class QuietWandbLogger(WandbLogger):
    """Lightning's logger without the `anonymous` setting, which it always passes and W&B warns of as having no effect."""

    @property
    @rank_zero_experiment
    def experiment(self) -> Any:
        """W&B's run, started at the first use."""
        self._wandb_init.pop("anonymous", None)
        return super().experiment
