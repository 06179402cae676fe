"""Lays the scores of a method on stories out in the columns of ViStoryBench's table."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np

from dsd_lightning.evaluation.errors import EvaluationError
from dsd_lightning.evaluation.judging.judgements import Judgement, failures
from dsd_lightning.evaluation.judging.replies import HIGHEST
from dsd_lightning.evaluation.scores import intervals
from dsd_lightning.evaluation.scores.formats import csv_text
from dsd_lightning.evaluation.scores.tables import Cell, Table
from dsd_lightning.evaluation.stories.alignment import DIMENSIONS, SINGLE
from dsd_lightning.files.atomic import write_json
from dsd_lightning.files.text import read_text

COLUMNS = {
    "style_self": ("Style", "Self", intervals.COSINE),
    "style_cross": ("Style", "Cross", intervals.COSINE),
    "cids_self": ("CIDS", "Self", intervals.COSINE),
    "cids_cross": ("CIDS", "Cross", intervals.COSINE),
    "camera": ("Alignment", "Camera", (0.0, float(HIGHEST))),
    "scene": ("Alignment", "Scene", (0.0, float(HIGHEST))),
    "character_action": ("Alignment", "Action", (0.0, float(HIGHEST))),
    SINGLE: ("Alignment", "Single", (0.0, float(HIGHEST))),
    "alignment": ("Alignment", "Avg.", (0.0, float(HIGHEST))),
    "occm": ("", "OCCM", (0.0, 100.0)),
    "copy_paste": ("", "Copy-paste", intervals.SHARE),
}
"""Heading of the group, heading and scale of each metric; alignment is 0 to 4 as published."""

SHOWN = ("style", "characters", "CIDS", "faces")
"""Parts of a setup that stand below a table."""

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
    """One method's metrics by name, of `COLUMNS`.

    Attributes:
        setup: with what they were measured, such as `style: CSD (csd.pth)`; rows of one table have the same.
        notes: lines below a table about this method.
    """

    method: str
    judge: str
    metrics: Mapping[str, Metric]
    setup: Mapping[str, str] = field(default_factory=dict)
    notes: Sequence[str] = field(default=())

    def write(self, file: Path) -> None:
        """Write the values of every story as JSON, for a table of several methods."""
        content = asdict(self)
        for metric in content["metrics"].values():
            metric["by_story"] = {
                story: None if math.isnan(value) else value for story, value in metric["by_story"].items()
            }
        write_json(file, content)

    @classmethod
    def read(cls, file: Path) -> StoryScores:
        """Read what `write` has written.

        Raises:
            EvaluationError: there is no such file, or it is another one.
        """
        if not file.is_file():
            raise EvaluationError(f"rows: there is no file {file}")
        try:
            content = json.loads(read_text(file))
            metrics = {
                name: Metric(
                    {story: math.nan if value is None else float(value) for story, value in each["by_story"].items()},
                    each["scored"],
                    each["missing"],
                )
                for name, each in content["metrics"].items()
                if name in COLUMNS
            }
            return cls(content["method"], content["judge"], metrics, content["setup"], tuple(content["notes"]))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise EvaluationError(
                f"rows: {file} is no file of a method's scores on stories (scores/METHOD.json): {error}"
            ) from error


def alignment(judgements: Sequence[Judgement]) -> dict[str, Metric]:
    """Return the mean score of each dimension that was judged over the shots of a story, and their mean over dimensions.

    A shot's score is the mean over its judgements; of `SINGLE` it has one for each character that was found. What has no
    score is missing, and not 0.
    """
    stories = list(dict.fromkeys(each.subject for each in judgements))
    judged = {each.measure for each in judgements}
    dimensions = [name for name in (*DIMENSIONS, SINGLE) if name in judged]
    by_dimension = {}
    for dimension in dimensions:
        chosen = [each for each in judgements if each.measure == dimension]
        scored = [each for each in chosen if each.score is not None]
        shots: dict[tuple[str, int], list[float]] = {}
        for each in scored:
            shots.setdefault((each.subject, each.prompt), []).append(float(each.score or 0))
        by_story = {
            story: _mean([_mean(scores) for (name, _), scores in shots.items() if name == story]) for story in stories
        }
        by_dimension[dimension] = Metric(by_story, len(scored), len(chosen) - len(scored))
    means = {story: _mean([by_dimension[each].by_story[story] for each in dimensions]) for story in stories}
    total = [sum(getattr(by_dimension[each], name) for each in dimensions) for name in ("scored", "missing")]
    return {**by_dimension, "alignment": Metric(means, *total)}


def _mean(values: Sequence[float]) -> float:
    numbers = [value for value in values if not math.isnan(value)]
    return float(np.mean(numbers)) if numbers else math.nan


def failure_note(judgements: Sequence[Judgement]) -> tuple[str, ...]:
    """Return a line with the judgements without a score by kind; none if there are none."""
    kinds = ", ".join(f"{kind} {count}" for kind, count in failures(judgements).items())
    return (f"without a score: {kinds}",) if kinds else ()


def table_of(rows: Sequence[StoryScores], title: str) -> Table:
    """Return the table of methods, of the metrics that any of them has, measured alike (`comparison.require_alike`)."""
    names = [name for name in COLUMNS if any(name in row.metrics for row in rows)]
    body = tuple((row.method, tuple(_cell(row.metrics.get(name), name) for name in names)) for row in rows)
    notes = (
        "[..]: 95% interval over stories. Missing: shots without an image, or judgements without a score",
        *(f"{what}: {how}" for what, how in rows[0].setup.items() if what in SHOWN),
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
