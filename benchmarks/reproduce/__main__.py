"""Runs the commands that measure the paper's claims on the miniature, and writes docs/reproduction.md from their results.

python -m benchmarks.reproduce                 all steps, in order; the same command goes on where it was interrupted
python -m benchmarks.reproduce --list          the steps, and which are done
python -m benchmarks.reproduce --only NAME     some steps
python -m benchmarks.reproduce --table         the table alone, from what was measured so far, here or elsewhere

Steps and claims stand in benchmarks/reproduce/plan.yaml. A step is done when its result file exists; the summary of a
training run that was stopped early says so, and is no result. A step that fails is reported, those that need it are left out,
and the others go on; the exit status is 1 then.
"""

from __future__ import annotations

import argparse
import json
import logging
import shlex
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from omegaconf import OmegaConf

from benchmarks.reproduce.claims import ROOT, measure, table
from dsd_lightning.files.atomic import write_text
from dsd_lightning.files.text import read_text
from dsd_lightning.runs.folder import SUMMARY
from dsd_lightning.runs.resume import is_finished

log = logging.getLogger("reproduce")

PLAN = Path(__file__).with_name("plan.yaml")
TABLE = Path("docs") / "reproduction.md"
RESULTS = Path("benchmarks") / "results" / "reproduction.json"


@dataclass(frozen=True)
class Step:
    """A command with the file that it leaves behind when it has succeeded.

    Attributes:
        name: as in the plan.
        command: arguments after the Python interpreter.
        result: file whose existence says that the step is done; without one the step runs each time.
        needs: names of steps that come first.
    """

    name: str
    command: str
    result: Path | None = None
    needs: Sequence[str] = ()

    @property
    def done(self) -> bool:
        """Whether the result exists and is not the summary of a run that was stopped early."""
        if self.result is None or not (ROOT / self.result).exists():
            return False
        return self.result.name != SUMMARY or is_finished(ROOT / self.result.parent)


def read_plan(path: Path, out: str) -> tuple[list[Step], list[dict[str, Any]]]:
    """Return the steps and the claims of a plan; `out` is the folder of all results."""
    plan = OmegaConf.load(path)
    OmegaConf.update(plan, "out", out)
    content = cast(dict[str, Any], OmegaConf.to_container(plan, resolve=True))
    steps = [
        Step(name, step["command"], Path(step["result"]) if "result" in step else None, tuple(step.get("needs", ())))
        for name, step in content["steps"].items()
    ]
    return steps, content["claims"]


def run_steps(steps: Sequence[Step], logs: Path) -> list[str]:
    """Run what is not done yet, in order, and return the names of the steps that failed or were left out."""
    logs.mkdir(parents=True, exist_ok=True)
    missing: list[str] = []
    for number, step in enumerate(steps, start=1):
        title = f"{number}/{len(steps)} {step.name}"
        unmet = [name for name in step.needs if name in missing]
        if step.done:
            log.info("%s: done before (%s)", title, step.result)
        elif unmet:
            log.error("%s: left out, since %s failed", title, ", ".join(unmet))
            missing.append(step.name)
        else:
            log.info("%s: python %s", title, step.command)
            started = time.monotonic()
            log_file = logs / f"{step.name}.log"
            with log_file.open("ab") as stream:
                command = [sys.executable, *shlex.split(step.command)]
                status = subprocess.call(command, cwd=ROOT, stdout=stream, stderr=subprocess.STDOUT)
            minutes = (time.monotonic() - started) / 60
            if status or (step.result is not None and not step.done):
                reason = f"exit status {status}" if status else f"no {step.result}"
                log.error("%s: failed after %.1f minutes (%s); see %s", title, minutes, reason, log_file)
                missing.append(step.name)
            else:
                log.info("%s: %.1f minutes", title, minutes)
    return missing


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return its exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", nargs="+", metavar="NAME", help="steps to run")
    parser.add_argument("--out", default="outputs/reproduction", help="folder of all results (default: %(default)s)")
    parser.add_argument("--list", action="store_true", help="list the steps and end")
    parser.add_argument("--table", action="store_true", help="write the table from what was measured so far and end")
    parser.add_argument("--plan", type=Path, default=PLAN, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    steps, claims = read_plan(options.plan, options.out)
    unknown = set(options.only or ()) - {step.name for step in steps}
    if unknown:
        parser.error(f"--only {' '.join(sorted(unknown))}: choose among {', '.join(step.name for step in steps)}")
    if options.list:
        for step in steps:
            print(f"{'done' if step.done else 'open'}  {step.name}: python {step.command}")
        return 0
    missing = []
    if not options.table:
        chosen = [step for step in steps if not options.only or step.name in options.only]
        missing = run_steps(chosen, Path(options.out) / "logs")
    recorded = json.loads(read_text(ROOT / RESULTS)) if (ROOT / RESULTS).exists() else {}
    results = measure(claims, recorded)
    write_text(ROOT / RESULTS, json.dumps(results, indent=1) + "\n")
    write_text(ROOT / TABLE, table(claims, results))
    log.info("%s", TABLE)
    return 1 if missing else 0


if __name__ == "__main__":
    sys.exit(main())
