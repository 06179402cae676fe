"""Fits the miniature's parts: a warm-up and a cosine, and a command that resumes where it stopped."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import ModelCheckpoint, TQDMProgressBar
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from omegaconf import DictConfig
from torch.optim import Optimizer
from torch.optim.lr_scheduler import CosineAnnealingLR, LinearLR, SequentialLR
from torch.utils.data import DataLoader, Dataset


def warmed_up_cosine(optimizer: Optimizer, learning_rate: float, steps: int, warmup_steps: int) -> SequentialLR:
    """Return the schedule: linear from a hundredth to `learning_rate`, then a cosine down to a hundredth again."""
    warm = max(1, min(warmup_steps, steps - 1))
    return SequentialLR(
        optimizer,
        [
            LinearLR(optimizer, 0.01, total_iters=warm),
            CosineAnnealingLR(optimizer, steps - warm, eta_min=learning_rate * 0.01),
        ],
        milestones=[warm],
    )


def scheduled(optimizer: Optimizer, hyperparameters: Any) -> OptimizerLRScheduler:
    """Return an optimizer as Lightning wants it, under the schedule of `learning_rate`, `steps` and `warmup_steps`."""
    rate, steps, warm = (hyperparameters[name] for name in ("learning_rate", "steps", "warmup_steps"))
    schedule = warmed_up_cosine(optimizer, rate, steps, warm)
    return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def fit(module: L.LightningModule, batches: Dataset[Any], config: DictConfig) -> None:
    """Train `module` on whole batches, one a step, from the last checkpoint in `config.work_dir` where there is one.

    Args:
        module: what is trained.
        batches: by step number.
        config: accelerator, precision, steps, checkpoint_every_steps, workers and work_dir.
    """
    work = Path(config.work_dir)
    trainer = L.Trainer(
        accelerator=config.accelerator,
        devices=1,
        precision=config.precision,
        max_steps=config.steps,
        max_epochs=1,
        gradient_clip_val=1.0,
        logger=False,
        callbacks=[
            ModelCheckpoint(work, save_last=True, every_n_train_steps=config.checkpoint_every_steps, save_top_k=0),
            TQDMProgressBar(refresh_rate=20),
        ],
    )
    loader = DataLoader(batches, batch_size=None, num_workers=config.workers)
    last = work / "last.ckpt"
    trainer.fit(module, loader, ckpt_path=str(last) if last.exists() else None)
