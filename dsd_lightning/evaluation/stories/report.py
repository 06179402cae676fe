"""Lays the scores of a method on stories out in the columns of ViStoryBench's table."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from dsd_lightning.evaluation.judging.judgements import Judgement, failures
from dsd_lightning.evaluation.judging.replies import HIGHEST
from dsd_lightning.evaluation.scores import intervals
from dsd_lightning.evaluation.scores.formats import csv_text
from dsd_lightning.evaluation.scores.tables import Cell, Table
from dsd_lightning.evaluation.stories.alignment import DIMENSIONS

COLUMNS = {
    "style_self": ("Style", "Self", intervals.COSINE),
    "style_cross": ("Style", "Cross", intervals.COSINE),
    "cids_self": ("CIDS", "Self", intervals.COSINE),
    "cids_cross": ("CIDS", "Cross", intervals.COSINE),
    "camera": ("Alignment", "Camera", (0.0, float(HIGHEST))),
    "scene": ("Alignment", "Scene", (0.0, float(HIGHEST))),
    "character_action": ("Alignment", "Action", (0.0, float(HIGHEST))),
    "alignment": ("Alignment", "Avg.", (0.0, float(HIGHEST))),
    "occm": ("", "OCCM", (0.0, 100.0)),
    "copy_paste": ("", "Copy-paste", intervals.SHARE),
}
"""Heading of the group, heading and scale of each metric; alignment is 0 to 4 as published."""

CSV_COLUMNS = ("method", "metric", "value", "low", "high", "stories", "scored", "missing")


@dataclass(frozen=True)
class Metric:
    """A mean over stories.

    Attributes:
        by_story: values by story; NaN where one has none.
        scored, missing: shots, or judgements of shots, that have a value and that have none.
    """

    by_story: Mapping[str, float]
    scored: int
    missing: int

    @property
    def values(self) -> list[float]:
        """Return the values that there are."""
        return [value for value in self.by_story.values() if not math.isnan(value)]

    @property
    def mean(self) -> float:
        """Return the mean over stories with a value, NaN if there is none."""
        return float(np.mean(self.values)) if self.values else math.nan


@dataclass(frozen=True)
class StoryScores:
    """One method's metrics by name, of `COLUMNS`."""

    method: str
    judge: str
    metrics: Mapping[str, Metric]
    notes: Sequence[str] = field(default=())


def alignment(judgements: Sequence[Judgement]) -> dict[str, Metric]:
    """Return the mean score of each dimension over the shots of a story, and their mean over dimensions.

    What has no score is missing, and not 0.
    """
    stories = list(dict.fromkeys(each.subject for each in judgements))
    found = {}
    for dimension in DIMENSIONS:
        chosen = [each for each in judgements if each.measure == dimension]
        scored = [each for each in chosen if each.score is not None]
        by_story = {
            story: _mean([float(each.score or 0) for each in scored if each.subject == story]) for story in stories
        }
        found[dimension] = Metric(by_story, len(scored), len(chosen) - len(scored))
    means = {story: _mean([found[each].by_story[story] for each in DIMENSIONS]) for story in stories}
    total = [sum(getattr(found[each], name) for each in DIMENSIONS) for name in ("scored", "missing")]
    return {**found, "alignment": Metric(means, *total)}


def _mean(values: Sequence[float]) -> float:
    numbers = [value for value in values if not math.isnan(value)]
    return float(np.mean(numbers)) if numbers else math.nan


def failure_note(judgements: Sequence[Judgement]) -> tuple[str, ...]:
    """Return a line with the judgements without a score by kind; none if there are none."""
    kinds = ", ".join(f"{kind} {count}" for kind, count in failures(judgements).items())
    return (f"without a score: {kinds}",) if kinds else ()


def table_of(rows: Sequence[StoryScores], title: str) -> Table:
    """Return the table of methods, of the metrics that any of them has."""
    names = [name for name in COLUMNS if any(name in row.metrics for row in rows)]
    body = tuple((row.method, tuple(_cell(row.metrics.get(name), name) for name in names)) for row in rows)
    notes = (
        "[..]: 95% interval over stories. Missing: shots without an image, or judgements without a score",
        *(f"{row.method}, {note}" for row in rows for note in row.notes),
    )
    return Table(title, rows[0].judge, None, tuple(COLUMNS[name][:2] for name in names), body, notes)


def _cell(metric: Metric | None, name: str) -> Cell:
    if metric is None:
        return ("-",)
    value = "-" if math.isnan(metric.mean) else f"{metric.mean:.3f}"
    low, high = intervals.of_mean(metric.values, COLUMNS[name][2])
    sizes = f"{len(metric.values)} stories", f"{metric.scored} scored", f"{metric.missing} missing"
    return (value, intervals.text(low, high), *sizes)


def to_csv(rows: Sequence[StoryScores]) -> str:
    """Return every metric of every method as a line."""
    lines = []
    for row in rows:
        for name, metric in row.metrics.items():
            bounds = intervals.of_mean(metric.values, COLUMNS[name][2])
            lines.append((row.method, name, metric.mean, *bounds, len(metric.values), metric.scored, metric.missing))
    return csv_text(CSV_COLUMNS, lines)
