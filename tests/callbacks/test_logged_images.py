"""Sample sheets reach TensorBoard's event files and trackio's database."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import lightning as L
import pytest
from lightning.pytorch.loggers import TensorBoardLogger
from PIL import Image
from support.commands import environment
from support.processes import prepared

from callbacks.logged_images import log_images
from dsd_lightning.cli.settings import SettingError
from dsd_lightning.runs.trackio_logger import TrackioLogger


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


WRITES = """
from types import SimpleNamespace
from PIL import Image
from callbacks.logged_images import log_images
from dsd_lightning.runs.trackio_logger import TrackioLogger

for step in (3, 7):  # stopped, and resumed
    logger = TrackioLogger("project", "parallel", None, "outputs/2026-01-31/12-00-00")
    logger.log_metrics({"train/loss": step / 2, "epoch": 0}, step)
    trainer = SimpleNamespace(loggers=[logger], global_step=step)
    log_images(trainer, "samples", [Image.new("RGB", (8, 8), "red")])
    log_images(trainer, "judge/images", [Image.new("RGB", (8, 8))] * 2, ["one", "two"])
    logger.finalize("success")
"""


@pytest.mark.slow
def test_trackio_keeps_metrics_and_images_on_this_machine(tmp_path: Path) -> None:
    pytest.importorskip("trackio")
    trackio_environment = environment(TRACKIO_DIR=str(tmp_path), HF_HUB_OFFLINE="1")
    written = prepared.run([sys.executable, "-c", WRITES], env=trackio_environment)
    assert written.returncode == 0, written.stderr
    assert written.stdout == ""
    [name] = (path.name for path in (tmp_path / "media" / "project").iterdir())
    assert name == "parallel-2026-01-31-12-00-00"
    reads = (
        "import json, sys; from trackio.sqlite_storage import SQLiteStorage\n"
        "print(json.dumps(SQLiteStorage.get_logs(*sys.argv[1:])))"
    )
    read = prepared.run([sys.executable, "-c", reads, "project", name], env=trackio_environment)
    rows = json.loads(read.stdout)
    assert [(row["step"], row["train/loss"]) for row in rows if "train/loss" in row] == [(3, 1.5), (7, 3.5)]
    assert len(list(tmp_path.rglob("*.png"))) == 6


def test_without_trackio_the_run_is_refused_with_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dsd_lightning.runs.trackio_logger.find_spec", lambda name: None)
    with pytest.raises(SettingError, match=r"pip install .*\[trackio\]"):
        TrackioLogger("project", "name", None, "outputs/a/b")
