"""Killed at any moment and started again, a run repeats no API call and makes the same set."""

from __future__ import annotations

import random
import subprocess
import time
from pathlib import Path

import pytest
from rehearsal_server import RehearsalServer
from support.commands import ROOT, command, environment
from support.distill_runs import arguments, captions_file, rule, run_here, samples, tars
from support.processes import prepared

KILLS = 5
CONCURRENCY = 4


@pytest.mark.long
def test_sigkill_at_five_random_moments_changes_nothing(tmp_path: Path) -> None:
    few = [f"agents.{role}.limits.concurrency={CONCURRENCY}" for role in ("llm", "vlm")]
    captions = captions_file(tmp_path)
    with RehearsalServer(rule) as server:
        run_here(tmp_path / "undisturbed", captions, server, *few)
        calls = server.counts["asked"]
    moments = sorted(random.Random(0).sample(range(5, calls - 5), KILLS))
    with RehearsalServer(rule, latency=0.03) as server:
        given = command(*arguments(tmp_path / "killed", captions, server.url, *few), module=("distill.py",))
        setting = environment(PYTHONPATH=f"{ROOT}:{ROOT / 'tests'}")
        for moment in moments:
            with prepared.start(given, env=setting, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL) as run:
                while server.counts["answered"] < moment and run.poll() is None:
                    time.sleep(0.005)
                assert run.poll() is None, run.stderr.read() if run.stderr else ""
                run.kill()
        server.settle()  # what was on the wire at the kill is answered
        on_disk = {path.stem for path in (tmp_path / "killed" / "agents" / "answers").rglob("*.json")}
        before = server.counts["answered"]
        last = prepared.run(given, env=setting, timeout=800)
        assert last.returncode == 0, last.stderr
        counts = server.counts
    assert counts["answered"] - before == calls - len(on_disk)
    twice = sum(each["answered"] - 1 for each in counts["requests"])
    assert 0 <= twice <= KILLS * CONCURRENCY  # answers that were on the wire when their process was killed
    assert len(counts["requests"]) == calls
    assert tars(tmp_path / "killed") == tars(tmp_path / "undisturbed")
    assert samples(tmp_path / "killed") == samples(tmp_path / "undisturbed")
