"""Runs on one device what a GPU alone can show, and writes what passed, what failed, and how fast it was.

python -m benchmarks.gpu [--device cuda|cpu] [--out FOLDER] [--only NAME ...]        or: make gpu [DEVICE=cpu]

Steps stand in benchmarks/gpu.yaml: all tests marked `gpu`; the paper's run on the tiny base in its own precision and strategy,
stopped, resumed, validated, exported and used, also compiled and on a base in 8 or 4 bits; then, as far as memory allows,
training steps of FLUX.1-dev's size with random weights, their peak memory against the plan, and images in 28 steps. Nothing is
downloaded. A step that fails is reported and the others go on; the exit status is 1 then. The results are FOLDER/DEVICE.json
and a table, FOLDER/DEVICE.md.
"""

from __future__ import annotations

import argparse
import json
import logging
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any, cast

import torch
from omegaconf import OmegaConf

from benchmarks.measure import facts
from dsd_lightning.files.atomic import write_json, write_text

log = logging.getLogger("gpu")

ROOT = Path(__file__).parents[1]
PLAN = Path(__file__).with_suffix(".yaml")
OUTS = {"cuda": Path("benchmarks/results/gpu"), "cpu": Path("outputs/gpu")}
TIMEOUT = 600.0
"""Seconds that a step may take."""

PASSED, FAILED, LEFT_OUT = "passed", "failed", "left out"


@dataclass(frozen=True)
class Step:
    """A command, and what shows that it did what it should.

    Attributes:
        name: as in the plan.
        command: arguments after the Python interpreter, with placeholders.
        status: exit status that it should have.
        leaves: file or folder that should exist afterwards.
        stop_when: file or folder at whose appearance SIGTERM is sent.
        result: whether it writes metrics as JSON to {result}.
        when: kind of device without which it is left out.
        needs: package without which it is left out.
        memory_gib: memory of the device without which it is left out, GiB.
    """

    name: str
    command: str
    status: int = 0
    leaves: str | None = None
    stop_when: str | None = None
    result: bool = False
    when: str | None = None
    needs: str | None = None
    memory_gib: float | int = 0

    def obstacle(self, device: torch.device) -> str | None:
        """Return why the step cannot run here, or None."""
        if self.when is not None and device.type != self.when:
            return f"needs a device of kind {self.when}"
        if self.needs is not None and find_spec(self.needs) is None:
            return f"needs {self.needs}: pip install -e '.[quantize]'"
        if self.memory_gib and torch.cuda.get_device_properties(device).total_memory < self.memory_gib * 2**30:
            return f"needs {self.memory_gib} GiB"
        return None


@dataclass(frozen=True)
class Outcome:
    """What became of a step: its state, seconds, the reason where it did not pass, and its metrics."""

    name: str
    state: str
    seconds: float = 0.0
    reason: str = ""
    metrics: Mapping[str, Any] = field(default_factory=dict)


def read_plan(path: Path = PLAN) -> tuple[str, list[Step]]:
    """Return the settings of the paper's run on the tiny base, and the steps."""
    plan = cast(dict[str, Any], OmegaConf.to_container(OmegaConf.load(path)))
    return plan["preset"], [Step(**each) for each in plan["steps"]]


def run(step: Step, work: Path, device: torch.device, preset: str) -> Outcome:
    """Run a step, with its output in a log in `work`."""
    if obstacle := step.obstacle(device):
        return Outcome(step.name, LEFT_OUT, reason=obstacle)
    result = work / "result.json"
    result.unlink(missing_ok=True)
    accelerator = "gpu" if device.type == "cuda" else "cpu"
    places = {"device": str(device), "accelerator": accelerator, "work": str(work), "result": str(result)}

    def filled(text: str) -> str:
        return text.replace("{preset}", preset).format(**places)

    start = time.monotonic()
    log_file = work / "step.log"
    with log_file.open("w") as output:
        command = [sys.executable, *shlex.split(filled(step.command))]
        process = subprocess.Popen(command, cwd=ROOT, stdout=output, stderr=output, stdin=subprocess.DEVNULL)
        try:
            if step.stop_when is not None:
                _stop(process, Path(filled(step.stop_when)))
            status = process.wait(TIMEOUT)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            status = -signal.SIGKILL
        finally:
            if process.poll() is None:
                process.kill()
    seconds = time.monotonic() - start
    reason = ""
    if status != step.status:
        reason = f"exit status {status}, not {step.status}: " + " / ".join(log_file.read_text().splitlines()[-3:])
    elif step.leaves is not None and not Path(filled(step.leaves)).exists():
        reason = f"{filled(step.leaves)} does not exist"
    metrics = json.loads(result.read_text()) if step.result and result.is_file() else {}
    return Outcome(step.name, FAILED if reason else PASSED, seconds, reason, metrics)


def _stop(process: subprocess.Popen[bytes], sign: Path) -> None:
    """Send SIGTERM to a process as soon as `sign` exists; none where the process ends or takes too long before."""
    end = time.monotonic() + TIMEOUT
    while process.poll() is None and time.monotonic() < end:
        if sign.exists():
            process.send_signal(signal.SIGTERM)
            return
        time.sleep(0.02)


def table(outcomes: Sequence[Outcome], device: Mapping[str, Any]) -> str:
    """Return the outcomes as Markdown."""
    lines = [
        f"# {device['device']}",
        "",
        f"`python -m benchmarks.gpu`, commit {device['commit']}, torch {device['versions']['torch']}.",
        "",
        "| step | | seconds | |",
        "|---|---|---|---|",
    ]
    lines += [f"| {each.name} | {each.state} | {each.seconds:.0f} | {_notes(each)} |" for each in outcomes]
    return "\n".join(lines) + "\n"


def _notes(outcome: Outcome) -> str:
    metrics = outcome.metrics
    if not metrics:
        return outcome.reason.replace("|", "/")
    notes = [
        f"{metrics[key]['ours']['median']:.3g} s {key.removeprefix('seconds_').replace('_', ' ')}"
        for key in ("seconds_a_step", "seconds_an_image")
        if key in metrics
    ]
    if other := metrics.get("ours_over_theirs"):
        notes.append(f"{other['ratio']:.2f} [{other['low']:.2f}, {other['high']:.2f}] of plain diffusers + peft")
    notes += [f"MFU {metrics['mfu']:.2f}"] if "mfu" in metrics else []
    notes += [f"{metrics['memory_gib']:.1f} GiB"] if "memory_gib" in metrics else []
    if "peak_over_planned" in metrics:
        notes.append(f"{metrics['peak_gib']:.3g} GiB, {metrics['peak_over_planned']:.2f} of the plan")
    return ", ".join(notes)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the steps, and return 1 if one failed."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument(
        "--out", type=Path, help="folder of the results; default: " + ", ".join(map(str, OUTS.values()))
    )
    parser.add_argument("--only", nargs="*", default=[], help="names of steps, or parts of them")
    args = parser.parse_args(arguments)
    logging.basicConfig(format="%(message)s", level=logging.INFO)
    device = torch.device(args.device)
    if device.type not in OUTS or (device.type == "cuda" and not torch.cuda.is_available()):
        parser.error(f"--device {args.device}: there is no such device here; choose cuda or cpu")
    preset, steps = read_plan()
    outcomes = []
    with tempfile.TemporaryDirectory(prefix="gpu-") as scratch:
        for step in steps:
            if args.only and not any(part in step.name for part in args.only):
                continue
            outcomes.append(run(step, Path(scratch), device, preset))
            log.info("%-8s %4.0f s  %s  %s", outcomes[-1].state, outcomes[-1].seconds, step.name, _notes(outcomes[-1]))
    out = args.out or OUTS[device.type]
    out.mkdir(parents=True, exist_ok=True)
    about = facts(device)
    stem = "".join(letter if letter.isalnum() else "_" for letter in about["device"])
    write_json(out / f"{stem}.json", {**about, "steps": [asdict(each) for each in outcomes]})
    write_text(out / f"{stem}.md", table(outcomes, about))
    log.info("%s", out / f"{stem}.md")
    return int(any(each.state == FAILED for each in outcomes))


if __name__ == "__main__":
    raise SystemExit(main())
