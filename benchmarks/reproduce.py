"""Runs the commands that measure the paper's claims on the miniature, and writes docs/reproduction.md from their results.

python -m benchmarks.reproduce                 all steps, in order; the same command goes on where it was interrupted
python -m benchmarks.reproduce --list          the steps, and which are done
python -m benchmarks.reproduce --only NAME     some steps
python -m benchmarks.reproduce --table         the table alone, from what was measured so far

Steps and claims stand in benchmarks/reproduction.yaml. A step is done when its result file exists. A step that fails is
reported, those that need it are left out, and the others go on; the exit status is 1 then.
"""

from __future__ import annotations

import argparse
import csv
import json
import logging
import shlex
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from omegaconf import OmegaConf
from scipy.stats import binomtest

from dsd_lightning.files.atomic import write_text
from dsd_lightning.files.text import read_text

log = logging.getLogger("reproduce")

ROOT = Path(__file__).parents[1]
PLAN = Path(__file__).with_name("reproduction.yaml")
TABLE = Path("docs") / "reproduction.md"
NOT_MEASURED = "not measured yet"


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
        """Whether the result exists."""
        return self.result is not None and (ROOT / self.result).exists()


@dataclass(frozen=True)
class Value:
    """A measured number with the bounds of its 95 % interval; without an interval both are None."""

    mean: float
    low: float | None = None
    high: float | None = None

    def __str__(self) -> str:
        """Return the number with its interval in brackets."""
        return f"{self.mean:.3f}" + (f" [{self.low:.3f}, {self.high:.3f}]" if self.low is not None else "")


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


def value_at(source: Mapping[str, Any]) -> Value | None:
    """Return the number that `source` points to, or None if its file or its entry does not exist yet.

    Args:
        source: `file` (JSON or CSV), `path` (keys; `key=value` selects among the items of a list or the rows of a table), and
            for a share `count`, of how many samples it is, for its Wilson interval. A mapping with `mean` and `half_width`
            or a row with `value`, `low` and `high` brings its own interval.
    """
    file = ROOT / source["file"]
    if not file.exists():
        return None
    text = read_text(file)
    node: Any = list(csv.DictReader(text.splitlines())) if file.suffix == ".csv" else json.loads(text)
    for key in map(str, source["path"]):
        if isinstance(node, list):
            name, _, wanted = key.partition("=")
            node = [item for item in node if str(item.get(name)) == wanted]
            node = node[0] if len(node) == 1 else node
        elif "=" not in key:
            node = node.get(key)
        if not node and node != 0:
            return None
    if not isinstance(node, Mapping):
        return _share(float(node), source.get("count"))
    if "mean" not in node:
        return Value(*(float(node[name]) for name in ("value", "low", "high")))
    half = node["half_width"]
    return Value(node["mean"]) if half is None else Value(node["mean"], node["mean"] - half, node["mean"] + half)


def _share(share: float, count: int | None) -> Value:
    if count is None:
        return Value(share)
    bounds = binomtest(round(share * count), count).proportion_ci(method="wilson")
    return Value(share, float(bounds.low), float(bounds.high))


def agreement(rule: Mapping[str, Any], values: Mapping[str, Value]) -> str:
    """Return whether a claim holds: "yes", "no", or "not distinguished" where intervals overlap.

    Args:
        rule: `{greater: [a, b]}`, of two values; or `{least: [a, number]}`, of a mean.
        values: by name.
    """
    if "least" in rule:
        name, least = rule["least"]
        return "yes" if values[name].mean >= least else "no"
    larger, smaller = (values[name] for name in rule["greater"])
    if _low(larger) > _high(smaller):
        return "yes"
    return "no" if _high(larger) < _low(smaller) else "not distinguished"


def _low(value: Value) -> float:
    return value.mean if value.low is None else value.low


def _high(value: Value) -> float:
    return value.mean if value.high is None else value.high


def table(claims: Sequence[Mapping[str, Any]]) -> str:
    """Return docs/reproduction.md: a row a claim."""
    lines = [
        "# The paper's claims, measured on the miniature",
        "",
        "Written by `make reproduce` (`benchmarks/reproduction.yaml` holds steps and claims). In brackets: 95 % intervals,",
        "over seeds (Student's t) or over samples (Wilson). Where intervals overlap, values are not distinguished.",
        "",
        "| paper | claim | measured here | agrees? | command |",
        "|---|---|---|---|---|",
    ]
    for claim in claims:
        values = {name: value_at(source) for name, source in claim.get("values", {}).items()}
        measured = {name: value for name, value in values.items() if value is not None}
        complete = bool(values) and len(measured) == len(values)
        verdict = agreement(claim["agrees"], measured) if complete else "—"
        text = "<br>".join(f"{name}: {value}" for name, value in measured.items()) if complete else NOT_MEASURED
        cells = [claim["paper"], claim["claim"], claim.get("instead") or text, verdict]
        command = f"`python -m benchmarks.reproduce --only {' '.join(claim['steps'])}`" if "steps" in claim else ""
        lines.append("| " + " | ".join([*cells, command]) + " |")
    return "\n".join(lines) + "\n"


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
    write_text(ROOT / TABLE, table(claims))
    log.info("%s", TABLE)
    return 1 if missing else 0


if __name__ == "__main__":
    sys.exit(main())
