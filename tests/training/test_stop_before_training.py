"""SIGTERM ends a run at once while its pairs are still being encoded."""

from __future__ import annotations

import signal
import subprocess
import time
from pathlib import Path

import pytest
from support.commands import SOURCE, command, environment, tiny
from support.processes import prepared

MINUTES_OF_ENCODING = 400_000
"""Pairs."""


@pytest.mark.slow
def test_sigterm_while_encoding_ends_the_run(tiny_base: Path, tmp_path: Path) -> None:
    overrides = tiny(tiny_base, f"{SOURCE}.pairs={MINUTES_OF_ENCODING}", "trainer.max_steps=1", "logger=csv")
    log = tmp_path / "run.log"
    with log.open("w") as output:
        given = command(*overrides, f"hydra.run.dir={tmp_path / 'run'}")
        process = prepared.start(given, env=environment(), stdout=output, stderr=subprocess.STDOUT)
        try:
            end = time.monotonic() + 120
            while "encoding" not in log.read_text() and process.poll() is None and time.monotonic() < end:
                time.sleep(0.1)
            process.send_signal(signal.SIGTERM)
            assert process.wait(60) == 128 + signal.SIGTERM, log.read_text()
        finally:
            process.kill()
    assert "Traceback" not in log.read_text()
    assert not (tmp_path / "run" / "summary.json").exists()
