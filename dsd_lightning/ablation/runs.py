"""Collects the finished runs of a sweep: one JSON file a run in the report's folder, its sample images beside it."""

from __future__ import annotations

import hashlib
import itertools
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import OmegaConf

from dsd_lightning.files.atomic import write_bytes, write_text
from dsd_lightning.files.listing import natural_key
from dsd_lightning.files.rows import Table
from dsd_lightning.files.text import read_text
from dsd_lightning.images.sheet import FINAL, GENERATED, GIVEN, ROWS, TRUTH
from dsd_lightning.runs.folder import CONFIG, FAILURE, METRICS, SAMPLES, SUMMARY, read_config, read_overrides

RUNS, IMAGES = "runs", "images"
"""Folder of the collected runs in a report's folder, and therein that of their images."""

PROBE = "probe/"
KEPT = re.compile(rf"{PROBE}.+|val/loss_(?!.*_bin).+|train/loss_target")
"""Metrics whose values by step are kept."""

_SEED = re.compile(r"seed(\d+)")


class AblationError(ValueError):
    """A folder that holds no runs of a sweep; the message says what was looked for."""


@dataclass(frozen=True)
class Sample:
    """A generated sample: its key and caption, and its images' files by column, below `runs/`.

    Files are named by their content, so equal names are equal images.
    """

    key: str
    caption: str
    images: Mapping[str, str]


@dataclass(frozen=True)
class Run:
    """What a report needs of a finished run.

    Attributes:
        task, label, seed: from its folder `TASK/LABEL/seedN`; the label is the architecture's name, or what
            `hydra.sweep.subdir` made of it. In any other sweep they are the configuration's, and the label is made of the
            overrides in which its runs differ.
        config: as composed.
        summary: the metrics of `summary.json`; None where one was not finite.
        curves: by metric, (step, value) in the order of the steps.
        samples: those generated at the end of training.
    """

    task: str
    label: str
    seed: int
    config: Mapping[str, Any]
    summary: Mapping[str, Any]
    curves: Mapping[str, Sequence[tuple[int, float]]]
    samples: Sequence[Sample]
    swept: Sequence[str] = ()
    """Keys of those overrides."""

    @property
    def name(self) -> str:
        """Its name in messages and file names."""
        return re.sub(r"[^\w=.,+-]+", "_", f"{self.task}-{self.label}-seed{self.seed}")


@dataclass(frozen=True)
class Unfinished:
    """A run that has no metrics, and why."""

    task: str
    label: str
    seed: int
    state: str

    @property
    def place(self) -> str:
        """Its folder below the sweep's."""
        return f"{self.task}/{self.label}/seed{self.seed}"


# --- From a sweep's folder.


def collect(sweep: Path, output: Path) -> list[Unfinished]:
    """Copy what a report needs of the finished runs in `sweep` to `output/runs`, and return the other runs.

    Runs collected earlier stay, also when they are no longer in the sweep's folder; those that are there are copied again.
    Planned runs without a folder are returned too.

    Raises:
        AblationError: if `sweep` holds no run.
    """
    folders = run_folders(sweep)
    swept: tuple[str, ...] = ()
    if not folders:
        folders, swept = any_run_folders(sweep)
    if not folders:
        raise AblationError(f"{sweep} holds no runs, as `python train.py -m ...` makes them")
    unfinished = [Unfinished(*run, "not started") for run in planned(sweep) if run not in folders]
    for (task, label, seed), folder in folders.items():
        summary = _read_json(folder / SUMMARY) or {}
        if summary.get("finished"):
            run = replace(_read_run(task, label, seed, folder, summary, output / RUNS), swept=swept)
            write_text(output / RUNS / f"{run.name}.json", json.dumps(asdict(run), indent=1, sort_keys=True) + "\n")
        else:
            unfinished.append(Unfinished(task, label, seed, _state(folder)))
    collected = {(run.task, run.label, run.seed) for run in load(output)}
    return sorted(
        (run for run in unfinished if (run.task, run.label, run.seed) not in collected),
        key=lambda run: (run.task, run.label, run.seed),
    )


def run_folders(sweep: Path) -> dict[tuple[str, str, int], Path]:
    """Return the run folders `TASK/LABEL/seedN` below `sweep` by (task, label, seed), in order."""
    folders = {}
    for folder in sorted(sweep.glob("*/*/seed*")):
        match = _SEED.fullmatch(folder.name)
        if match and folder.is_dir():
            folders[folder.parent.parent.name, folder.parent.name, int(match.group(1))] = folder
    return folders


def any_run_folders(sweep: Path) -> tuple[dict[tuple[str, str, int], Path], tuple[str, ...]]:
    """Return the run folders of any sweep by (task, label, seed), and the keys of the overrides in which they differ.

    A label states those overrides, without task and seed; of architectures alone it is the name.
    """
    overrides: dict[Path, dict[str, str]] = {}
    for record in sorted(sweep.rglob(CONFIG), key=lambda path: natural_key(path.as_posix())):
        given = (each.partition("=") for each in read_overrides(record.parent))
        overrides[record.parent] = {key.lstrip("+~"): value for key, _, value in given}
    keys = list(dict.fromkeys(key for values in overrides.values() for key in values if key not in ("task", "seed")))
    varying = [key for key in keys if len({values.get(key) for values in overrides.values()}) > 1]
    folders: dict[tuple[str, str, int], Path] = {}
    for folder, values in overrides.items():
        config = read_config(folder)
        stated = [values[key] if varying == ["arch"] else f"{key}={values[key]}" for key in varying if key in values]
        label = ", ".join(stated) or ("default" if varying else folder.name)
        run = (str(OmegaConf.select(config, "task.name")), label, int(OmegaConf.select(config, "seed") or 0))
        if run in folders:  # only the place tells them apart
            run = (run[0], f"{label} ({folder.relative_to(sweep)})", run[2])
        folders[run] = folder
    return folders, tuple(key.replace("/", ".") for key in varying)


def planned(sweep: Path) -> list[tuple[str, str, int]]:
    """Return (task, label, seed) of the runs of the sweep's last command.

    Read from Hydra's `multirun.yaml`; empty where it does not say (no such file, a `glob` sweep, another launcher's own).
    """
    path = sweep / "multirun.yaml"
    if not path.exists():
        return []
    saved = OmegaConf.to_container(OmegaConf.load(path), resolve=False)
    assert isinstance(saved, dict)
    hydra = saved["hydra"]
    overrides = [*(f"{key}={value}" for key, value in (hydra["sweeper"].get("params") or {}).items())]
    overrides += hydra["overrides"]["task"]
    choices: dict[str, list[str]] = {}
    try:
        for override in OverridesParser.create().parse_overrides(overrides):
            swept = override.is_sweep_override()
            values = list(override.sweep_string_iterator()) if swept else [override.get_value_element_as_str()]
            choices[override.key_or_group] = values
    except HydraException:
        return []
    runs = []
    for combination in itertools.product(*choices.values()):
        place = str(hydra["sweep"]["subdir"])
        for key, value in zip(choices, combination, strict=True):
            place = place.replace(f"${{hydra.runtime.choices.{key}}}", value).replace(f"${{{key}}}", value)
        parts = place.split("/")
        if len(parts) == 3 and "$" not in place and (match := _SEED.fullmatch(parts[2])):
            runs.append((parts[0], parts[1], int(match.group(1))))
    return runs


def _state(folder: Path) -> str:
    failure = folder / FAILURE
    if failure.exists():
        return f"failed: {read_text(failure).splitlines()[0]}"
    steps = [step for points in _read_curves(folder / METRICS, re.compile(".*")).values() for step, _ in points]
    return f"unfinished, at step {max(steps)}" if steps else "not trained yet"


def _read_run(task: str, label: str, seed: int, folder: Path, summary: Mapping[str, Any], runs: Path) -> Run:
    config = OmegaConf.to_container(read_config(folder))
    assert isinstance(config, dict)
    final = folder / SAMPLES / FINAL
    samples = []
    for row in _read_json(final / ROWS) or []:
        files = {column: row["images"][column] for column in (GIVEN, GENERATED, TRUTH) if column in row["images"]}
        kept = {column: _keep_image(final / file, runs) for column, file in files.items()}
        samples.append(Sample(row["key"], row["caption"], kept))
    settings = {str(key): value for key, value in config.items()}
    return Run(task, label, seed, settings, summary, _read_curves(folder / METRICS, KEPT), samples)


def _read_curves(path: Path, kept: re.Pattern[str]) -> dict[str, list[tuple[int, float]]]:
    curves: dict[str, list[tuple[int, float]]] = {}
    for row in Table(path) if path.exists() else ():
        for name, value in row.cells.items():
            if name != "step" and value and kept.fullmatch(name):
                curves.setdefault(name, []).append((int(row.cells["step"]), float(value)))
    return curves


def _read_json(path: Path) -> Any:
    return json.loads(read_text(path)) if path.exists() else None


def _keep_image(source: Path, runs: Path) -> str:
    content = source.read_bytes()
    name = f"{IMAGES}/{hashlib.sha256(content).hexdigest()[:16]}.png"
    if not (runs / name).exists():
        write_bytes(runs / name, content)
    return name


# --- From a report's folder.


def load(output: Path) -> list[Run]:
    """Return the collected runs of a report's folder, by task, label and seed."""
    runs = []
    for path in (output / RUNS).glob("*.json"):
        values = _read_json(path)
        curves = {name: [(int(step), float(value)) for step, value in c] for name, c in values["curves"].items()}
        samples = [Sample(**sample) for sample in values["samples"]]
        runs.append(Run(**(values | {"curves": curves, "samples": samples})))
    return sorted(runs, key=lambda run: (run.task, run.label, run.seed))
