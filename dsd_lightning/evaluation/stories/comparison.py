"""Compares two methods on stories, metric by metric, and refuses rows that were not measured alike."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from dsd_lightning.evaluation.errors import EvaluationError
from dsd_lightning.evaluation.scores import intervals
from dsd_lightning.evaluation.scores.comparison import EXCHANGES
from dsd_lightning.evaluation.stories.report import COLUMNS, StoryScores
from dsd_lightning.randomness import numpy_generator


@dataclass(frozen=True)
class Difference:
    """One method against another in one metric, over the stories that both have.

    Attributes:
        metric: of `report.COLUMNS`.
        first, second: methods.
        value: first - second.
        low, high: bounds of its 95% interval over stories; NaN where there is none.
        p: of a two-sided permutation test that exchanges the methods story by story.
        stories: how many both have.
    """

    metric: str
    first: str
    second: str
    value: float
    low: float
    high: float
    p: float
    stories: int

    def __str__(self) -> str:
        """Return a line for people."""
        return (
            f"{self.metric}: {self.first} - {self.second} = {self.value:+.3f} "
            f"{intervals.text(self.low, self.high, '+.3f')}, p = {self.p:.4f} (permutation over {self.stories} stories)"
        )


def compare(first: StoryScores, second: StoryScores, exchanges: int = EXCHANGES) -> list[Difference]:
    """Return how two methods differ in the metrics that both have, over at least two stories with values of both.

    Args:
        first, second: methods, measured alike.
        exchanges: random ones, from which p is computed.
    """
    differences = []
    for name, (_, _, (least, greatest)) in COLUMNS.items():
        if name not in first.metrics or name not in second.metrics:
            continue
        one, other = first.metrics[name].by_story, second.metrics[name].by_story
        pairs = [(one[story], other[story]) for story in one if story in other]
        apart = np.array([left - right for left, right in pairs if not math.isnan(left - right)])
        if len(apart) < 2:
            continue
        signs = numpy_generator("evaluation", "stories", "exchange").choice((-1.0, 1.0), (exchanges, len(apart)))
        # Differences that are equal up to rounding count as equal.
        extreme = int((np.abs(signs @ apart) >= abs(apart.sum()) - 1e-9).sum())
        low, high = intervals.of_mean(apart, (least - greatest, greatest - least))
        p = (1 + extreme) / (1 + exchanges)
        differences.append(Difference(name, first.method, second.method, float(apart.mean()), low, high, p, len(apart)))
    return differences


def require_alike(rows: Sequence[StoryScores]) -> None:
    """Refuse rows that cannot be in one table.

    Raises:
        EvaluationError: of different judges, rubrics, protocols, encoders or detectors.
    """
    for name in dict.fromkeys(["judge", *(part for row in rows for part in row.setup)]):
        values = {row.judge if name == "judge" else row.setup.get(name, "none") for row in rows}
        if len(values) > 1:
            raise EvaluationError(
                f"rows of different {name} cannot be in one table or be compared: {' and '.join(sorted(values))}; "
                "score them all alike"
            )
