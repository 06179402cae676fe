"""Shows that intervals hold the truth as often as they say, and that there is none where none can be had."""

from __future__ import annotations

import math

import numpy as np
import pytest

from benchmarks import coverage
from dsd_lightning.evaluation.scores import intervals


def test_the_jackknife_of_a_mean_is_students_interval() -> None:
    values = np.asarray([0.2, 0.4, 0.5, 0.9])
    weights, strata = intervals.left_out(["a"] * 4)
    means = weights @ values / weights.sum(axis=1)
    assert intervals.student(values.mean(), intervals.jackknifed(means, strata)) == pytest.approx(
        intervals.of_mean(values)
    )
    # Student's t of 3 degrees of freedom: 3.182.
    width = 3.1824463 * values.std(ddof=1) / 2
    assert intervals.of_mean(values) == pytest.approx((0.5 - width, 0.5 + width))


@pytest.mark.parametrize("values", [[], [0.5], [0.611, 0.611, 0.611]])
def test_there_is_no_interval_where_nothing_varies(values: list[float]) -> None:
    low, high = intervals.of_mean(values)
    assert math.isnan(low)
    assert math.isnan(high)
    assert intervals.text(low, high) == "[no interval]"


def test_bounded_intervals_stay_within() -> None:
    low, high = intervals.student(0.97, [(0.01, 2.0)], bounded=True)
    assert 0 <= low < 0.97 < high <= 1


def test_a_category_of_one_subject_is_pooled_with_the_others() -> None:
    _, strata = intervals.left_out(["a", "a", "b"])
    assert [list(each) for each in strata] == [[0, 1, 2]]


@pytest.mark.long
@pytest.mark.parametrize(("subjects", "categories"), [(5, 1), (12, 4)])
def test_intervals_of_few_subjects_hold_the_truth(subjects: int, categories: int) -> None:
    shares = coverage.covered(subjects, categories, 120)
    # Of 120 intervals of 95%, 108 or more hold the truth in 99% of cases.
    assert min(shares.values()) >= 0.88, shares
    assert shares["cp"] >= 0.9


@pytest.mark.long
def test_intervals_of_three_raters_hold_the_truth() -> None:
    assert coverage.covered_by_raters(40) >= 0.85
