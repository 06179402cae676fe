"""Shows that intervals hold the truth as often as they say, and that there is none where none can be had."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

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
@pytest.mark.parametrize("scale", [None, (0.0, 1.0)])
def test_there_is_no_interval_where_nothing_varies(values: list[float], scale: tuple[float, float] | None) -> None:
    low, high = intervals.of_mean(values, scale)
    assert math.isnan(low)
    assert math.isnan(high)
    assert intervals.text(low, high) == "[no interval]"


@settings(max_examples=200, deadline=None)
@given(
    st.floats(-3, 3),
    st.floats(0.1, 5),
    st.lists(st.floats(0, 1), min_size=2, max_size=6).filter(lambda values: len(set(values)) > 1),
)
def test_intervals_stay_on_their_scale_and_hold_the_value(least: float, length: float, shares: list[float]) -> None:
    scale = least, least + length
    values = [least + length * share for share in shares]
    low, high = intervals.of_mean(values, scale)
    if not math.isnan(low):
        assert least - 1e-9 <= low <= np.mean(values) + 1e-9
        assert np.mean(values) - 1e-9 <= high <= scale[1] + 1e-9
    # Another unit gives the same interval in it.
    low_share, high_share = intervals.of_mean(shares, intervals.SHARE)
    assert math.isnan(low) or (low, high) == pytest.approx(
        (least + length * low_share, least + length * high_share), abs=1e-6 * length
    )


def test_an_interval_of_nearly_the_whole_scale_is_none() -> None:
    assert math.isnan(intervals.of_mean([4.0, 5.0], (1.0, 5.0))[0])
    assert not math.isnan(intervals.of_mean([4.4, 4.6], (1.0, 5.0))[0])


def test_a_category_of_one_subject_is_pooled_with_the_others() -> None:
    _, strata = intervals.left_out(["a", "a", "b"])
    assert [list(each) for each in strata] == [[0, 1, 2]]


@pytest.mark.long
@pytest.mark.parametrize(("subjects", "categories"), [(5, 1), (12, 4)])
def test_intervals_of_few_subjects_hold_the_truth(subjects: int, categories: int) -> None:
    shares = coverage.covered(subjects, categories, 120)
    # Of 120 intervals of 95%, 108 or more hold the truth in 99% of cases.
    assert min(each.covered for each in shares.values()) >= 0.88, shares
    assert shares["cp"].covered >= 0.9


@pytest.mark.long
@pytest.mark.parametrize("mean", coverage.RATING_MEANS)
def test_intervals_of_three_raters_hold_the_truth(mean: float) -> None:
    assert coverage.covered_by_raters(3, mean, 40).covered >= 0.85


def test_p_values_are_uniform_if_methods_are_equally_good() -> None:
    # The standard deviations of shares of 300 trials are 0.013, 0.025 and 0.029.
    null = coverage.significant(12, 4, 300)
    assert null.shares == pytest.approx([0.05, 0.25, 0.5], abs=0.09)
    assert null.shares[0] <= 0.09
    assert null.difference.covered >= 0.9


def test_the_committed_coverage_is_what_is_asked_for() -> None:
    results = json.loads((Path(coverage.__file__).parent / "results" / "coverage.json").read_text())
    subjects = {
        int(count): {name: coverage.Coverage(**share) for name, share in shares.items()}
        for count, shares in results["subjects"].items()
    }
    assert subjects.keys() == coverage.LEAST.keys()
    assert coverage.too_low(subjects) == []
    printed = [*results["stories"].values(), *(each["difference"] for each in results["equally_good"].values())]
    printed += [share for means in results["raters"].values() for share in means.values()]
    assert min(share["covered"] for share in printed) >= 0.93
    for count, null in results["equally_good"].items():
        # Five subjects have 32 exchanges, so that p is one of 16 values.
        levels = (0.0, 0.22, 0.47) if count == "5" else results["p_levels"]
        assert null["shares"] == pytest.approx(levels, abs=0.025)
