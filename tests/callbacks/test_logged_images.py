"""Sample sheets reach TensorBoard's event files."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import lightning as L
import pytest
from lightning.pytorch.loggers import TensorBoardLogger
from PIL import Image

from callbacks.logged_images import log_images


def test_images_are_written_as_events(tmp_path: Path) -> None:
    pytest.importorskip("tensorboardX")
    logger = TensorBoardLogger(tmp_path, name=None, version="tensorboard")
    trainer = cast(L.Trainer, cast(Any, SimpleNamespace(loggers=[logger], global_step=7)))
    log_images(trainer, "samples", [Image.new("RGB", (8, 8), "red")])
    log_images(trainer, "judge/images", [Image.new("RGB", (8, 8))] * 2, ["one", "two"])
    logger.finalize("success")
    (events,) = (tmp_path / "tensorboard").glob("events*")
    content = events.read_bytes()
    for name in (b"samples", b"judge/images/00", b"judge/images/01"):
        assert name in content
