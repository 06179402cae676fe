"""The script for GPUs runs at its smallest size on a CPU, and reports what fails."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from support.commands import environment
from support.processes import prepared

from benchmarks import gpu
from benchmarks.gpu import FAILED, LEFT_OUT, PASSED, Step, main, read_plan, run

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("step", "state", "reason"),
    [
        (Step("fine", "-c pass"), PASSED, ""),
        (Step("status", '-c "raise SystemExit(3)"'), FAILED, "exit status 3, not 0"),
        (Step("nothing left", "-c pass", leaves="{work}/absent"), FAILED, "does not exist"),
        (Step("cuda", "-c pass", when="cuda"), LEFT_OUT, "needs a device of kind cuda"),
        (Step("package", "-c pass", needs="no_such_package"), LEFT_OUT, "needs no_such_package"),
        (Step("stopped", '-c "import time; time.sleep(60)"', stop_when="{work}", status=-15), PASSED, ""),
        (Step("ended before", "-c pass", stop_when="{work}/absent", status=143), FAILED, "exit status 0, not 143"),
    ],
    ids=lambda each: each.name if isinstance(each, Step) else "",
)
def test_a_step_passes_fails_or_is_left_out(step: Step, state: str, reason: str, tmp_path: Path) -> None:
    outcome = run(step, tmp_path, CPU, "")
    assert (outcome.state, reason in outcome.reason) == (state, True)


def test_a_failure_does_not_stop_the_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    steps = [Step("bad", '-c "raise SystemExit(1)"'), Step("good", "-c pass")]
    monkeypatch.setattr(gpu, "read_plan", lambda: ("", steps))
    assert main(["--device", "cpu", "--out", str(tmp_path)]) == 1
    (file,) = tmp_path.glob("*.json")
    assert [each["state"] for each in json.loads(file.read_text())["steps"]] == [FAILED, PASSED]
    assert "| bad | failed |" in file.with_suffix(".md").read_text()


def test_an_absent_device_is_refused(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit):
        main(["--device", "cuda"])
    assert "choose cuda or cpu" in capsys.readouterr().err


def start(command: list[str], **given: Any) -> prepared.Process:
    """Start a step of the script; what measures time or memory gets an interpreter of its own."""
    measures = any(word.startswith("benchmarks.") for word in command)
    return subprocess.Popen(command, **given) if measures else prepared.start(command, env=environment(), **given)


@pytest.mark.long
@pytest.mark.slow
def test_the_whole_script_runs_on_a_cpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    starting = SimpleNamespace(Popen=start, DEVNULL=subprocess.DEVNULL, TimeoutExpired=subprocess.TimeoutExpired)
    monkeypatch.setattr(gpu, "subprocess", starting)
    assert main(["--device", "cpu", "--out", str(tmp_path)]) == 0
    (file,) = tmp_path.glob("*.json")
    results = json.loads(file.read_text())
    assert [each["name"] for each in results["steps"]] == [step.name for step in read_plan()[1]]
    assert all(each["state"] != FAILED for each in results["steps"])
    step, peak, image = (each["metrics"] for each in results["steps"] if each["metrics"])
    assert step["ours_over_theirs"]["ratio"] > 0
    assert image["ours_over_theirs"]["ratio"] > 0
    assert 0.9 < peak["peak_over_planned"] < 1.1
    notes = file.with_suffix(".md").read_text()
    assert all(text in notes for text in ("s a step", "s an image", "of the plan"))
