"""What does `python distill.py` do? Everything that is not done yet, then the report."""

from __future__ import annotations

import logging

from omegaconf import DictConfig

from dsd_lightning.distillation.runner import Distillation

log = logging.getLogger(__name__)


def distill(config: DictConfig) -> str:
    """Run, and return what to tell the user."""
    run = Distillation(config)
    root = run.run()
    return f"{root}"
