"""Evaluates people's ratings, of any number of raters and scales, some missing: means, deviations, agreement."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import krippendorff
import numpy as np
from numpy.typing import NDArray

from dsd_lightning.evaluation.scores import intervals
from dsd_lightning.evaluation.user_study.rating import Rating

OVERALL = "overall"
"""Name of the geometric mean of an image's criteria."""

Level = Literal["nominal", "ordinal", "interval"]
LEVELS: tuple[Level, ...] = get_args(Level)
"""Of measurement, for Krippendorff's alpha: whether ratings are only equal or not, ranks, or numbers."""


@dataclass(frozen=True)
class Opinion:
    """The ratings of one method by one criterion, over all raters.

    Attributes:
        mean: of all ratings.
        low, high: bounds of its 95% interval, over raters and items; NaN where there is none (one rater or item, or all
            ratings alike).
        std: population standard deviation of all ratings.
        rater_mean, rater_std: mean and population standard deviation of the raters' own means.
        alpha: Krippendorff's, over the method's items.
        ratings: how many there are.
        missing: how many more there would be if every rater of the study had rated every item of the method.
        raters, items: how many have a rating.
    """

    method: str
    criterion: str
    mean: float
    low: float
    high: float
    std: float
    rater_mean: float
    rater_std: float
    alpha: float
    ratings: int
    missing: int
    raters: int
    items: int


def alpha(ratings: NDArray[np.float64], level: Level = "ordinal") -> float:
    """Return Krippendorff's alpha of ratings [raters, units], NaN where a rater has not rated: 1 is agreement, 0 chance.

    NaN if no unit has two ratings, or all ratings are equal: then agreement is not defined.
    """
    pairable = ratings[:, (~np.isnan(ratings)).sum(axis=0) >= 2]
    if len(np.unique(pairable[~np.isnan(pairable)])) < 2:
        return math.nan
    return float(krippendorff.alpha(reliability_data=pairable, level_of_measurement=level))


def with_overall(ratings: Sequence[Rating]) -> list[Rating]:
    """Return the ratings and, of each image that a rater has rated by all criteria, their geometric mean."""
    grouped: dict[tuple[str, str, str], list[Rating]] = {}
    for each in ratings:
        grouped.setdefault((each.rater, each.item, each.method), []).append(each)
    count = len({each.criterion for each in ratings})
    means = [
        Rating(*key, OVERALL, math.prod(each.score for each in group) ** (1 / count))
        for key, group in grouped.items()
        if len(group) == count
    ]
    return [*ratings, *means]


def opinions(ratings: Sequence[Rating], scale: tuple[float, float] | None, level: Level = "ordinal") -> list[Opinion]:
    """Return the raters' opinions, method by method and criterion by criterion.

    Args:
        ratings: of all methods.
        scale: least and greatest rating, which intervals do not leave; None for ratings without bounds.
        level: of measurement, for alpha.
    """
    raters = len({each.rater for each in ratings})
    result = []
    for method in dict.fromkeys(each.method for each in ratings):
        items = len({each.item for each in ratings if each.method == method})
        for criterion in dict.fromkeys(each.criterion for each in ratings):
            chosen = [each for each in ratings if (each.method, each.criterion) == (method, criterion)]
            matrix = _matrix(chosen)
            if matrix.size:
                result.append(_opinion(method, criterion, matrix, raters * items, scale, level))
    return result


def agreement(ratings: Sequence[Rating], level: Level = "ordinal") -> dict[str, float]:
    """Return Krippendorff's alpha by criterion, over the images of all methods."""
    return {
        criterion: alpha(_matrix([each for each in ratings if each.criterion == criterion]), level)
        for criterion in dict.fromkeys(each.criterion for each in ratings)
    }


def _matrix(ratings: Sequence[Rating]) -> NDArray[np.float64]:
    """Return ratings as [raters, images], NaN where there is none, without raters and images that have none."""
    ratings = [each for each in ratings if not math.isnan(each.score)]
    raters = {name: index for index, name in enumerate(sorted({each.rater for each in ratings}))}
    units = {key: index for index, key in enumerate(sorted({(each.method, each.item) for each in ratings}))}
    matrix = np.full((len(raters), len(units)), np.nan)
    for each in ratings:
        matrix[raters[each.rater], units[each.method, each.item]] = each.score
    return matrix


def _opinion(
    method: str,
    criterion: str,
    matrix: NDArray[np.float64],
    planned: int,
    scale: tuple[float, float] | None,
    level: Level,
) -> Opinion:
    rated = ~np.isnan(matrix)
    values = matrix[rated]
    by_rater = np.asarray([matrix[row, rated[row]].mean() for row in range(len(matrix))])
    parts = [_variance(matrix), _variance(matrix.T)]
    low, high = intervals.student(float(values.mean()), parts, scale, crossed=True)
    return Opinion(
        method=method,
        criterion=criterion,
        mean=float(values.mean()),
        low=low,
        high=high,
        std=float(values.std()),
        rater_mean=float(by_rater.mean()),
        rater_std=float(by_rater.std()),
        alpha=alpha(matrix, level),
        ratings=len(values),
        missing=planned - len(values),
        raters=matrix.shape[0],
        items=matrix.shape[1],
    )


def _variance(matrix: NDArray[np.float64]) -> tuple[float, float]:
    """Return the variance of the mean of all ratings that comes from the rows, by leaving out one each, and its freedom.

    Raters and images are both samples. Their variances are added; the part of the single rating is in both, so that the
    interval is slightly wide rather than narrow.
    """
    count, rated = len(matrix), ~np.isnan(matrix)
    if count < 2:
        return 0.0, 0.0
    totals, numbers = np.where(rated, matrix, 0).sum(axis=1), rated.sum(axis=1)
    means = (totals.sum() - totals) / np.maximum(1, numbers.sum() - numbers)
    return float(((means - means.mean()) ** 2).sum() * (count - 1) / count), count - 1.0
