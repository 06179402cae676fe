"""Which runs does a sweep's folder hold, and what is kept of each: one JSON file a run, its images beside it."""

from __future__ import annotations

import csv
import hashlib
import itertools
import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import OmegaConf

from dsd_lightning.images.sheet import FINAL, GENERATED, GIVEN, ROWS, TRUTH
from dsd_lightning.runs.folder import CONFIG, FAILURE, METRICS, SAMPLES, SUMMARY

RUNS, IMAGES = "runs", "images"
"""Folder of the collected runs in a report's folder, and therein that of their images."""

PROBE = "probe/"
KEPT = re.compile(rf"{PROBE}.+|val/loss_(?!.*_bin).+|train/loss_target")
"""Metrics whose course is kept."""

_SEED = re.compile(r"seed(\d+)")


class StudyError(ValueError):
    """A folder that holds no study; the message says what was looked for."""


@dataclass(frozen=True)
class Sample:
    """One drawn sample: its key and caption, and its images' files by column, below `runs/`.

    Files are named by their content, so equal names are equal images.
    """

    key: str
    caption: str
    images: Mapping[str, str]


@dataclass(frozen=True)
class Run:
    """What a report needs of one finished run.

    Attributes:
        task, label, seed: from its folder `TASK/LABEL/seedN`; the label is the architecture's name, or what
            `hydra.sweep.subdir` made of it.
        config: as composed.
        summary: the metrics of `summary.json`; None where one was not finite.
        curves: by metric, (step, value) in the order of the steps.
        samples: what it drew at the end.
    """

    task: str
    label: str
    seed: int
    config: Mapping[str, Any]
    summary: Mapping[str, Any]
    curves: Mapping[str, Sequence[tuple[int, float]]]
    samples: Sequence[Sample]

    @property
    def name(self) -> str:
        """Its name in messages and file names."""
        return f"{self.task}-{self.label}-seed{self.seed}"


@dataclass(frozen=True)
class Unfinished:
    """A run that has no metrics, and why."""

    task: str
    label: str
    seed: int
    state: str


# --- From a sweep's folder.


def collect(sweep: Path, output: Path) -> list[Unfinished]:
    """Copy what a report needs of the finished runs in `sweep` to `output/runs`, and return the others.

    Runs that were copied earlier stay, also when the sweep's folder holds them no longer; those that are there are copied
    anew. Planned runs without a folder count as others too.

    Raises:
        StudyError: if `sweep` holds no run folders `TASK/LABEL/seedN`.
    """
    folders = run_folders(sweep)
    if not folders:
        raise StudyError(
            f"{sweep} holds no runs: folders TASK/ARCHITECTURE/seedN, as `python train.py -m experiment=ablation` makes them"
        )
    others = []
    for (task, label, seed), folder in folders.items():
        summary = _read_json(folder / SUMMARY) or {}
        if summary.get("finished"):
            _write_run(_read_run(task, label, seed, folder, summary, output / RUNS), output / RUNS)
        else:
            others.append(Unfinished(task, label, seed, _state(folder)))
    others += [Unfinished(*each, "not started") for each in planned(sweep) if each not in folders]
    kept = {(run.task, run.label, run.seed) for run in load(output)}
    return sorted(
        (each for each in others if (each.task, each.label, each.seed) not in kept),
        key=lambda each: (each.task, each.label, each.seed),
    )


def run_folders(sweep: Path) -> dict[tuple[str, str, int], Path]:
    """Return the run folders `TASK/LABEL/seedN` below `sweep` by (task, label, seed), in order."""
    found = {}
    for folder in sorted(sweep.glob("*/*/seed*")):
        match = _SEED.fullmatch(folder.name)
        if match and folder.is_dir():
            found[folder.parent.parent.name, folder.parent.name, int(match.group(1))] = folder
    return found


def planned(sweep: Path) -> list[tuple[str, str, int]]:
    """Return (task, label, seed) of the runs that the sweep's last command asked for.

    Read from Hydra's `multirun.yaml`; empty where that cannot tell (no such file, a `glob` sweep, another launcher's own).
    """
    path = sweep / "multirun.yaml"
    if not path.exists():
        return []
    saved = OmegaConf.to_container(OmegaConf.load(path), resolve=False)
    assert isinstance(saved, dict)
    hydra = saved["hydra"]
    subdir = hydra["sweep"]["subdir"]
    words = [*(f"{key}={value}" for key, value in (hydra["sweeper"].get("params") or {}).items())]
    words += hydra["overrides"]["task"]
    choices: dict[str, list[str]] = {}
    try:
        for each in OverridesParser.create().parse_overrides(words):
            swept = each.is_sweep_override()
            choices[each.key_or_group] = (
                list(each.sweep_string_iterator()) if swept else [each.get_value_element_as_str()]
            )
    except HydraException:
        return []
    plan = []
    for values in itertools.product(*choices.values()):
        place = str(subdir)
        for key, value in zip(choices, values, strict=True):
            place = place.replace(f"${{hydra.runtime.choices.{key}}}", value).replace(f"${{{key}}}", value)
        parts = place.split("/")
        if len(parts) == 3 and "$" not in place and (match := _SEED.fullmatch(parts[2])):
            plan.append((parts[0], parts[1], int(match.group(1))))
    return plan


def _state(folder: Path) -> str:
    failure = folder / FAILURE
    if failure.exists():
        return f"failed: {failure.read_text().splitlines()[0]}"
    steps = [step for points in _read_curves(folder / METRICS, re.compile(".*")).values() for step, _ in points]
    if not steps:
        return "not trained yet"
    return f"unfinished, at step {max(steps)}"


def _read_run(task: str, label: str, seed: int, folder: Path, summary: Mapping[str, Any], runs: Path) -> Run:
    config = OmegaConf.to_container(OmegaConf.load(folder / CONFIG), resolve=False)
    assert isinstance(config, dict)
    final = folder / SAMPLES / FINAL
    samples = [
        Sample(
            row["key"],
            row["caption"],
            {
                column: _keep_image(final / row["images"][column], runs)
                for column in (GIVEN, GENERATED, TRUTH)
                if column in row["images"]
            },
        )
        for row in _read_json(final / ROWS) or []
    ]
    plain = {str(key): value for key, value in config.items()}
    return Run(task, label, seed, plain, summary, _read_curves(folder / METRICS, KEPT), samples)


def _read_curves(path: Path, kept: re.Pattern[str]) -> dict[str, list[tuple[int, float]]]:
    curves: dict[str, list[tuple[int, float]]] = {}
    if path.exists():
        with path.open(newline="") as file:
            for row in csv.DictReader(file):
                for name, value in row.items():
                    if name != "step" and value and kept.fullmatch(name):
                        curves.setdefault(name, []).append((int(row["step"]), float(value)))
    return curves


def _read_json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None


# --- In a report's folder.


def _keep_image(source: Path, runs: Path) -> str:
    content = source.read_bytes()
    name = f"{IMAGES}/{hashlib.sha256(content).hexdigest()[:16]}.png"
    if not (runs / name).exists():
        write_whole(runs / name, content)
    return name


def _write_run(run: Run, runs: Path) -> None:
    write_whole(runs / f"{run.name}.json", (json.dumps(asdict(run), indent=1, sort_keys=True) + "\n").encode())


def load(output: Path) -> list[Run]:
    """Return the collected runs of a report's folder, by task, label and seed."""
    runs = []
    for path in (output / RUNS).glob("*.json"):
        values = _read_json(path)
        curves = {name: [(int(step), float(value)) for step, value in c] for name, c in values["curves"].items()}
        samples = [Sample(**each) for each in values["samples"]]
        runs.append(Run(**(values | {"curves": curves, "samples": samples})))
    return sorted(runs, key=lambda run: (run.task, run.label, run.seed))


def write_whole(path: Path, content: bytes) -> None:
    """Write a file beside its place and rename it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.partial")
    beside.write_bytes(content)
    os.replace(beside, path)
