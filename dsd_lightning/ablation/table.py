"""Tables of an ablation: mean and 95% interval over seeds, a row an architecture, and settings in which runs differ."""

from __future__ import annotations

import math
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

_EXPECTED = ("arch", "seed")
"""Settings in which runs of one task may differ."""


@dataclass(frozen=True)
class Estimate:
    """Mean over seeds, and half the width of its interval (Student's t), None for a single value."""

    mean: float
    half_width: float | None
    count: int

    def __str__(self) -> str:
        """Return the mean, and the half width with two significant digits unless all values are the same."""
        if not self.half_width:
            return shortened(self.mean)
        digits = max(0, 1 - math.floor(math.log10(self.half_width)))
        return f"{self.mean:.{digits}f} ± {self.half_width:.{digits}f}"


def shortened(value: float) -> str:
    """Return a number with four significant digits; integers as such, with separators."""
    return f"{value:,.0f}" if value == round(value) else f"{value:.4g}"


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
    for label in sorted({run.label for run in runs}):
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
    """Return the settings in which runs differ though they should not: by name, by value, the runs that have it."""
    settings: list[dict[str, Any]] = [
        {**flattened(run.config), "pairs_seen": run.summary.get("pairs_seen"), "steps": run.summary.get("steps")}
        for run in runs
    ]
    differences = {}
    for name in sorted({name for each in settings for name in each}):
        if name.split(".")[0] in _EXPECTED or may_differ(name):
            continue
        if all(each.get(name) == each.get("seed") for each in settings):
            continue  # follows the seed, as the record's resolved `data.datamodule.seed` does
        by_value: dict[str, list[str]] = {}
        for run, each in zip(runs, settings, strict=True):
            by_value.setdefault(str(each.get(name, "not given")), []).append(run.name)
        if len(by_value) > 1:
            differences[name] = by_value
    return differences
