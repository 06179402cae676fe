"""Progress is a bar that log lines do not break in a terminal, and a line every few steps in a log file."""

from __future__ import annotations

import io
import logging
import os
import pty
import sys
import termios
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import lightning as L
import pytest
from support.processes.terminal import screen
from support.tiny_run import Run

from callbacks.progress import ProgressBar


class Talkative(L.Callback):
    """Logs and warns while the bar is shown."""

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        logging.getLogger("talk").warning("a line after step %d", trainer.global_step)
        with warnings.catch_warnings():
            warnings.simplefilter("always")  # runs of tests ignore them
            warnings.warn(f"a warning at step {trainer.global_step}", stacklevel=1)


@contextmanager
def terminal(monkeypatch: pytest.MonkeyPatch) -> Iterator[io.BytesIO]:
    """Make standard output a pseudo-terminal, and give what was written to it when the block ends."""
    ours, theirs = pty.openpty()
    termios.tcsetwinsize(theirs, (40, 160))
    written = io.BytesIO()

    def read() -> None:
        # Closing their end makes the read fail.
        try:
            while data := os.read(ours, 1 << 14):
                written.write(data)
        except OSError:
            pass

    reader = threading.Thread(target=read)
    reader.start()
    with os.fdopen(theirs, "w") as file, monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", file)
        handler = logging.StreamHandler(file)
        logging.getLogger().addHandler(handler)
        yield written
        logging.getLogger().removeHandler(handler)
    reader.join()
    os.close(ours)


def test_log_lines_and_warnings_stand_above_the_bar(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with terminal(monkeypatch) as written:
        Run(tmp_path, 3, ProgressBar(), Talkative()).fit()
        Run(tmp_path, 5, ProgressBar(), Talkative()).fit(tmp_path / "checkpoints" / "step_00000003")
        logging.getLogger("talk").warning("after both")
    raw = written.getvalue().decode()
    shown = screen(raw)
    for step in range(1, 6):
        assert f"a line after step {step}" in shown
        assert f"UserWarning: a warning at step {step}" in shown
    assert "after both" in shown
    for part in ("loss=", "loss_reference=", "loss_target=", "pairs/s=", " left"):
        assert part in raw
    assert "v_num" not in raw
    assert "/?" not in raw.rsplit("training", 1)[-1]
    assert "5/5" in raw  # resumed at 3, of 5 in all
    assert warnings.showwarning.__module__ != "callbacks.progress"


def test_a_log_file_gets_a_line_every_few_steps(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, "callbacks.progress"):
        Run(tmp_path, 7, ProgressBar(every_n_steps=3), accumulate=2).fit()
    assert "\r" not in "".join(capsys.readouterr())
    lines = [line for line in caplog.messages if line.startswith("step ")]
    assert [line.split()[1] for line in lines] == ["1/7", "3/7", "6/7", "7/7"]
    for part in ("loss ", "loss_reference ", "loss_target ", "pairs/s ", " left  ", " GiB"):
        assert part in lines[-1]
    assert "00:00 left" in lines[-1]
    validations = [line for line in caplog.messages if line.startswith("validation after step ")]
    assert validations
    assert "loss_right " in validations[0]


def test_lines_need_a_distance() -> None:
    with pytest.raises(ValueError, match=r"every_n_steps=0 must be >= 1"):
        ProgressBar(every_n_steps=0)
