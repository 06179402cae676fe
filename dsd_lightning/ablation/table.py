"""Tables of an ablation: mean and 95% interval over seeds, a row an architecture, and settings in which runs differ."""

from __future__ import annotations

import math
import re
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from scipy.special import stdtrit

from dsd_lightning.ablation.runs import PROBE, Run
from dsd_lightning.runs.folder import flattened, may_differ

LEVEL = 0.95
"""Of the intervals."""

LOSS = "val/loss_target"

COSTS = {
    "parameters_trained": ("trained parameters", 1.0),
    "flops_per_pair": ("GFLOP a pair", 1e9),
    "seconds_per_pair": ("ms a pair", 1e-3),
    "peak_memory_gib": ("peak memory, GiB", 1.0),
}
"""Metrics of the summary that state costs: heading, and the unit in which it is shown."""

_EXPECTED = ("arch",)
"""Settings in which rows of one task may differ, beside those that the sweep varies; the runs of a row may not."""

_ORDER = ("parallel", "concat", "controlnet", "ip_adapter", "ip_adapter_plus", "reference_tokens", "text_only")
"""Architectures in the order of the paper's Figure 6, then those that it does not have."""


@dataclass(frozen=True)
class Estimate:
    """Mean over seeds, and half the width of its interval (Student's t), None for a single value."""

    mean: float
    half_width: float | None
    count: int


_NUMBER = re.compile(r"(\d+(?:\.\d+)?(?:e[+-]?\d+)?)")


def ordered(labels: Iterable[str]) -> list[str]:
    """Return rows' labels: architectures in the paper's order, then all others, numbers in them by their size."""

    def place(label: str) -> tuple[int, list[Any]]:
        architecture = label.removeprefix("arch=")
        if architecture in _ORDER:
            return _ORDER.index(architecture), []
        parts = _NUMBER.split(label)  # words and numbers alternate
        return len(_ORDER), [float(part) if index % 2 else part for index, part in enumerate(parts)]

    return sorted(labels, key=place)


def estimate(values: Sequence[float]) -> Estimate | None:
    """Return the mean of `values` and its interval at `LEVEL`; None for no values."""
    count = len(values)
    if count == 0:
        return None
    mean = statistics.fmean(values)
    if count == 1:
        return Estimate(mean, None, 1)
    quantile = float(stdtrit(count - 1, 0.5 + LEVEL / 2))
    return Estimate(mean, quantile * statistics.stdev(values) / math.sqrt(count), count)


@dataclass(frozen=True)
class Row:
    """One architecture: its seeds and its metrics by name; a metric that no run has is left out."""

    label: str
    seeds: Sequence[int]
    metrics: Mapping[str, Estimate]

    @property
    def counted_seeds(self) -> str:
        """Return how many seeds there are, and which: `1 (0)`, where a lone `0` would read as none."""
        return f"{len(self.seeds)} ({', '.join(map(str, self.seeds))})"


@dataclass(frozen=True)
class Table:
    """One task: its metrics, a row an architecture, and the settings in which its runs differ but should not."""

    task: str
    scores: Sequence[str]
    rows: Sequence[Row]
    differences: Mapping[str, Mapping[str, Sequence[str]]]

    @property
    def metrics(self) -> list[str]:
        """All columns: scores, then costs."""
        return [*self.scores, *COSTS]


def tables(runs: Iterable[Run]) -> list[Table]:
    """Return a table a task."""
    by_task: dict[str, list[Run]] = {}
    for run in runs:
        by_task.setdefault(run.task, []).append(run)
    return [_table(task, members) for task, members in sorted(by_task.items())]


def _table(task: str, runs: Sequence[Run]) -> Table:
    probes = sorted({name.removeprefix(PROBE) for run in runs for name in run.curves if name.startswith(PROBE)})
    scores = [*probes, LOSS]
    rows = []
    for label in ordered({run.label for run in runs}):
        members = [run for run in runs if run.label == label]
        metrics = {}
        for name in [*scores, *COSTS]:
            values = [run.summary[name] for run in members if run.summary.get(name) is not None]
            mean = estimate([value / COSTS[name][1] if name in COSTS else value for value in values])
            if mean is not None:
                metrics[name] = mean
        rows.append(Row(label, [run.seed for run in members], metrics))
    return Table(task, scores, rows, _differences(runs))


def _differences(runs: Sequence[Run]) -> dict[str, dict[str, list[str]]]:
    """Return the settings in which runs differ though they should not: by name, by value, the rows or runs that have it."""
    settings: list[dict[str, Any]] = [
        {**flattened(run.config), "pairs_seen": run.summary.get("pairs_seen"), "steps": run.summary.get("steps")}
        for run in runs
    ]
    expected = (*_EXPECTED, *{key for run in runs for key in run.swept})
    differences = {}
    for name in sorted({name for each in settings for name in each}):
        if name == "seed" or may_differ(name):
            continue
        values: dict[str, set[str]] = {}  # by row
        for run, each in zip(runs, settings, strict=True):
            values.setdefault(run.label, set()).add(str(each.get(name, "not given")))
        is_expected = f"{name}.".startswith(tuple(f"{each}." for each in expected))
        if is_expected and all(len(row) == 1 for row in values.values()):
            continue
        if all(each.get(name) == each.get("seed") for each in settings):
            continue  # follows the seed, as the record's resolved `data.datamodule.seed` does
        if len({str(each.get(name)).replace(run.label, "{}") for run, each in zip(runs, settings, strict=True)}) == 1:
            continue  # names the label, as a folder of the pairs that are compared does
        by_value: dict[str, list[str]] = {}
        for run, each in zip(runs, settings, strict=True):
            holders = by_value.setdefault(str(each.get(name, "not given")), [])
            holder = run.label if len(values[run.label]) == 1 else run.name
            if holder not in holders:
                holders.append(holder)
        if len(by_value) > 1:
            differences[name] = by_value
    return differences
