"""A run prints little to a log file, and whole lines to a terminal."""

from __future__ import annotations

import re
import subprocess
from collections import Counter
from pathlib import Path

import pytest
from support.commands import ROOT, command, compose_train, environment, tiny_miniature
from support.processes.terminal import COLUMNS, recorded, screen

AS_A_USER = {"WANDB_MODE": None, "WANDB_SILENT": None, "WANDB_API_KEY": None}

MOST = 20_000
"""Bytes of the demo's log."""

BAR = re.compile(r"\S.*? +\d+%\|[^|]*\| \d+/\d+ \[.*\]")


def short(base: Path, folder: Path) -> list[str]:
    sizes = ["trainer.max_steps=8", "trainer.val_check_interval=4", "callbacks.progress.every_n_steps=2"]
    return [*tiny_miniature(base), *sizes, f"hydra.run.dir={folder / 'run'}"]


def repeated(lines: list[str]) -> list[str]:
    """Return the lines that are there twice."""
    return [line for line, times in Counter(lines).items() if times > 1]


@pytest.mark.slow
def test_the_log_of_the_demo_is_short_and_says_nothing_again(tiny_base: Path, tmp_path: Path) -> None:
    # Not prepared: what libraries say on import belongs to the log.
    given = command(*short(tiny_base, tmp_path))
    ended = subprocess.run(given, cwd=ROOT, env=environment(**AS_A_USER), capture_output=True, text=True, timeout=600)
    assert ended.returncode == 0, ended.stderr
    text = ended.stdout + ended.stderr
    lines = [line for line in text.splitlines() if line]
    assert "\r" not in text
    assert repeated(lines) == []
    # W&B, which logs offline here, advertises nothing and prints no summary of what the run's own lines say.
    assert not [line for line in lines if "wandb" in line and not line.startswith("  upload      wandb sync ")]
    assert "  upload      wandb sync " in text
    steps = [line for line in lines if re.search(r"\bstep \d+/8\b", line)]
    assert [re.findall(r"step (\d+)/", line)[0] for line in steps] == ["1", "2", "4", "6", "8"]
    validations = [line for line in lines if "validation after step" in line]
    # What remains is the same for every length of a run.
    rest = sum(len(line.encode()) + 1 for line in lines if line not in (*steps, *validations))
    demo = compose_train(tmp_path)
    of_steps = demo.trainer.max_steps // demo.callbacks.progress.every_n_steps + 2
    of_validations = demo.trainer.max_steps // demo.trainer.val_check_interval + 1
    longest = max(len(line.encode()) for line in (*steps, *validations)) + 20
    assert rest + (of_steps + of_validations) * longest < MOST


@pytest.mark.slow
def test_a_terminal_shows_whole_lines(tiny_base: Path, tmp_path: Path) -> None:
    code, written = recorded(command(*short(tiny_base, tmp_path)), **AS_A_USER)
    assert code == 0, written
    shown = screen(written)
    bars = [line for line in shown if "%|" in line]
    assert any("8/8" in line for line in bars)
    for line in bars:
        assert BAR.fullmatch(line), line
        assert len(line) <= COLUMNS
    others = [line for line in shown if line and line not in bars]
    assert repeated(others) == []
    assert any(line.startswith("run folder") for line in others)
