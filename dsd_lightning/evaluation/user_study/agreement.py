"""How far do raters agree? Krippendorff's alpha, for any number of raters, any scale, and missing ratings.

Source: Krippendorff, Computing Krippendorff's Alpha-Reliability (2011): coincidences within units against those by chance.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import NDArray

Level = Literal["nominal", "ordinal", "interval"]


def alpha(ratings: NDArray[np.float64], level: Level = "ordinal") -> float:
    """Return Krippendorff's alpha: 1 is agreement, 0 chance, below that disagreement by system.

    Args:
        ratings: [raters, units], NaN where a rater has not rated.
        level: what differences of ratings mean.

    Returns:
        NaN where no unit has two ratings, or all ratings are equal: then there is nothing to agree about.
    """
    ratings = ratings[:, (~np.isnan(ratings)).sum(axis=0) >= 2]
    values = np.unique(ratings[~np.isnan(ratings)])
    if len(values) < 2:
        return float("nan")
    counts = (ratings[..., None] == values).sum(axis=0).astype(np.float64)
    rated = counts.sum(axis=1, keepdims=True)
    coincidences = (counts / (rated - 1)).T @ counts - np.diag((counts / (rated - 1)).sum(axis=0))
    frequency = counts.sum(axis=0)
    expected = (np.outer(frequency, frequency) - np.diag(frequency)) / (frequency.sum() - 1)
    distance = _distance(values, frequency, level)
    return float(1 - (coincidences * distance).sum() / (expected * distance).sum())


def _distance(values: NDArray[np.float64], frequency: NDArray[np.float64], level: Level) -> NDArray[np.float64]:
    """Return the squared distance of every two values."""
    if level == "nominal":
        return 1.0 - np.eye(len(values))
    # Ordinal: values stand where their mid-ranks are, so that only order and frequencies count.
    places = values if level == "interval" else np.cumsum(frequency) - frequency / 2
    return np.asarray((places[:, None] - places[None]) ** 2)
