"""Sends images to the loggers that show images: W&B, TensorBoard and trackio."""

from __future__ import annotations

from collections.abc import Sequence

import lightning as L
import numpy as np
from lightning.pytorch.loggers import TensorBoardLogger, WandbLogger
from PIL import Image

from dsd_lightning.runs.trackio_logger import TrackioLogger


def log_images(
    trainer: L.Trainer, key: str, images: Sequence[Image.Image], captions: Sequence[str] | None = None
) -> None:
    """Log images of the trainer's present step under one name.

    Args:
        trainer: its loggers that show no images are passed over.
        key: the name, as in `docs/metrics.md`.
        images: RGB.
        captions: one an image; TensorBoard shows none.
    """
    step = trainer.global_step
    names = [key] if len(images) == 1 else [f"{key}/{index:02d}" for index in range(len(images))]
    for logger in trainer.loggers:
        if isinstance(logger, WandbLogger):
            logger.log_image(key, list(images), step=step, **({} if captions is None else {"caption": list(captions)}))
        elif isinstance(logger, TrackioLogger):
            said: Sequence[str | None] = [None] * len(images) if captions is None else captions
            logger.log_images(dict(zip(names, zip(images, said, strict=True), strict=True)), step)
        elif isinstance(logger, TensorBoardLogger):
            for name, image in zip(names, images, strict=True):
                logger.experiment.add_image(name, np.asarray(image), step, dataformats="HWC")
