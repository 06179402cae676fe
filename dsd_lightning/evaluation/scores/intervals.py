"""Computes 95% confidence intervals: of means over few subjects by the jackknife and Student's t, of shares by Wilson's.

Percentiles of a bootstrap over a dozen subjects cover the truth in 86% of cases only: they know neither that the variance
is itself an estimate, nor its bias of (n - 1) / n. `python -m benchmarks.coverage` measures how often these cover it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.special import stdtrit
from scipy.stats import binomtest

CONFIDENCE = 0.95
NONE = (math.nan, math.nan)
"""The interval where none can be had."""

SHARE, COSINE = (0.0, 1.0), (-1.0, 1.0)
"""Scales: least and greatest value."""

SAYS_NOTHING = 0.95
"""Share of its scale from which on an interval is none: Student's t of two raters has 12.7 standard deviations."""

_SAME = 1e-18
"""Variances up to this are rounding."""

Array = NDArray[np.float64]


def student(
    value: float,
    parts: Sequence[tuple[float, float]],
    scale: tuple[float, float] | None = None,
    crossed: bool = False,
) -> tuple[float, float]:
    """Return the interval of an estimate whose variance is a sum of estimated variances.

    Degrees of freedom are Satterthwaite's (1946). They are too many where a part with few may be the greater one, as that
    of three raters is: `crossed` gives each part its own quantile, as Cochran (1964) does.

    Args:
        value: the estimate.
        parts: variances with their degrees of freedom.
        scale: least and greatest value of the estimate: the interval is computed of its logit between them, and stays
            within. None for an estimate without bounds.
        crossed: whether the parts are of factors that are crossed, such as raters and images.

    Returns:
        Lower and upper bound; NaN where a part has no degree of freedom, nothing varies, or the interval would be
        nearly the whole scale (`SAYS_NOTHING`).
    """
    variance = sum(part for part, _ in parts)
    if not parts or min(freedom for _, freedom in parts) < 1 or not variance > _SAME or not math.isfinite(value):
        return NONE
    quantile = (1 + CONFIDENCE) / 2
    if crossed:
        width = math.sqrt(sum(part * float(stdtrit(freedom, quantile)) ** 2 for part, freedom in parts))
    else:
        freedom = variance**2 / sum(part**2 / each for part, each in parts)
        width = float(stdtrit(freedom, quantile)) * math.sqrt(variance)
    if scale is None:
        return value - width, value + width
    least, length = scale[0], scale[1] - scale[0]
    share, width = (value - least) / length, width / length
    if not 0 < share < 1:
        return NONE
    center, width = math.log(share / (1 - share)), width / (share * (1 - share))
    low, high = (0.5 * (1 + math.tanh((center + each) / 2)) for each in (-width, width))
    return (least + low * length, least + high * length) if high - low < SAYS_NOTHING else NONE


def of_mean(values: Sequence[float] | Array, scale: tuple[float, float] | None = None) -> tuple[float, float]:
    """Return the interval of the mean of independent values; NaN for fewer than two, or equal ones.

    Args:
        values: one a subject.
        scale: see `student`.
    """
    count = len(values)
    if count < 2:
        return NONE
    return student(float(np.mean(values)), [(float(np.var(values, ddof=1)) / count, count - 1.0)], scale)


def of_share(count: int, total: int) -> tuple[float, float]:
    """Return Wilson's interval (1927) of a share: `count` of `total` independent samples."""
    bounds = binomtest(count, total).proportion_ci(CONFIDENCE, method="wilson")
    return float(bounds.low), float(bounds.high)


def left_out(groups: Sequence[str]) -> tuple[Array, list[NDArray[np.int64]]]:
    """Return weights that leave out one subject each, its group keeping its weight, and the strata they belong to.

    Groups are strata, since a benchmark fixes how many subjects each has. Where a group has one subject only, all are one
    stratum: that subject cannot say how much its group varies.

    Args:
        groups: of each subject.

    Returns:
        Weights [subjects, subjects], a row for each subject that is left out, and the subjects of each stratum.
    """
    names = np.asarray(groups)
    strata = [np.flatnonzero(names == name) for name in dict.fromkeys(groups)]
    if min(map(len, strata)) < 2:
        strata = [np.arange(len(groups))]
    weights = np.ones((len(groups), len(groups)))
    for members in strata:
        weights[np.ix_(members, members)] = len(members) / max(1, len(members) - 1)
    np.fill_diagonal(weights, 0)
    return weights, strata


def jackknifed(estimates: Array, strata: Sequence[NDArray[np.int64]]) -> list[tuple[float, float]]:
    """Return the variance that each stratum contributes, with its degrees of freedom, for `student`.

    Args:
        estimates: without one subject each [subjects], as by the weights of `left_out`.
        strata: the subjects of each.
    """
    parts = []
    for members in strata:
        values, count = estimates[members], len(members)
        # Strata that an estimate does not depend on add nothing, not even degrees of freedom.
        if count < 2 or np.isnan(values).any() or np.ptp(values) > 1e-12:
            parts.append((float(((values - values.mean()) ** 2).sum() * (count - 1) / count), count - 1.0))
    return parts


def text(low: float, high: float, form: str = ".3f") -> str:
    """Return an interval for people; without one, that there is none."""
    return "[no interval]" if math.isnan(low) else f"[{low:{form}}, {high:{form}}]"
