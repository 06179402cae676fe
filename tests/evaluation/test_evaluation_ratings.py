"""Are raters' means, deviations and agreement those that libraries and the literature give, also with cells missing?"""

from __future__ import annotations

from pathlib import Path

import krippendorff
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dsd_lightning.evaluation.errors import EvaluationError
from dsd_lightning.evaluation.user_study.agreement import Level, alpha
from dsd_lightning.evaluation.user_study.ratings import Rating, agreement, opinions, read, with_overall

N = np.nan

KRIPPENDORFF_2011 = np.asarray(
    [
        [1, 2, 3, 3, 2, 1, 4, 1, 2, N, N, N],
        [1, 2, 3, 3, 2, 2, 4, 1, 2, 5, N, 3],
        [N, 3, 3, 3, 2, 3, 4, 2, 2, 5, 1, N],
        [1, 2, 3, 3, 2, 4, 4, 1, 2, 5, 1, N],
    ]
)
"""Example C of Krippendorff, Computing Krippendorff's Alpha-Reliability (2011)."""


def test_the_textbook_example_has_the_textbook_values() -> None:
    assert alpha(KRIPPENDORFF_2011, "nominal") == pytest.approx(0.743, abs=0.0005)
    assert alpha(KRIPPENDORFF_2011, "ordinal") == pytest.approx(0.815, abs=0.0005)
    assert alpha(KRIPPENDORFF_2011, "interval") == pytest.approx(0.849, abs=0.0005)


@given(
    st.integers(2, 5).flatmap(
        lambda raters: st.lists(
            st.lists(st.sampled_from([0.0, 0.5, 1.0, 4.0, N]), min_size=raters, max_size=raters),
            min_size=1,
            max_size=12,
        )
    ),
    st.sampled_from(["nominal", "ordinal", "interval"]),
)
def test_alpha_is_that_of_a_library(units: list[list[float]], level: Level) -> None:
    ratings = np.asarray(units).T
    mine = alpha(ratings, level)
    pairable = ratings[:, (~np.isnan(ratings)).sum(axis=0) >= 2]
    if len(np.unique(pairable[~np.isnan(pairable)])) < 2:
        assert np.isnan(mine)
        return
    theirs = krippendorff.alpha(reliability_data=pairable, level_of_measurement=level)
    assert mine == pytest.approx(theirs, abs=1e-9)


WIDE = {
    "ann.tsv": "uid\tA\tB\ns0\t[0, 1]\t[1,0.5]\ns1\t[0.5, 1]\t\ns2\t[1, 1]\t[0, 0]\n",
    "bob.tsv": "uid\tA\tB\ns0\t[0.5, 1]\t[1, 1]\ns1\t[0.5, 0.5]\t[0, 1]\ns2\t[1, 1]\t[0, 0.5]\n",
}


def test_wide_tables_of_several_raters_with_other_scales_and_empty_cells(tmp_path: Path) -> None:
    for name, text in WIDE.items():
        (tmp_path / name).write_text(text)
    ratings = read([tmp_path / name for name in WIDE], ["sc", "pq"], None)
    found = {(each.method, each.criterion): each for each in opinions(with_overall(ratings))}
    one = found["A", "sc"]
    assert one.mean == pytest.approx(np.mean([0, 0.5, 1, 0.5, 0.5, 1]))
    assert one.std == pytest.approx(np.std([0, 0.5, 1, 0.5, 0.5, 1]))
    assert one.rater_std == pytest.approx(np.std([0.5, 2 / 3]))
    assert one.low <= one.mean <= one.high
    holed = found["B", "sc"]
    assert (holed.ratings, holed.missing, holed.raters, holed.items) == (5, 1, 2, 3)
    assert holed.mean == pytest.approx(np.mean([1, 0, 1, 0, 0]))
    assert holed.rater_mean == pytest.approx(np.mean([0.5, 1 / 3]))
    assert found["A", "overall"].mean == pytest.approx(np.mean([0, 0.5**0.5, 1, 0.5**0.5, 0.5, 1]))
    library = krippendorff.alpha(
        reliability_data=np.asarray([[0, 0.5, 1, 1, N, 0], [0.5, 0.5, 1, 1, 0, 0]]), level_of_measurement="ordinal"
    )
    assert agreement(ratings)["sc"] == pytest.approx(library)


def test_long_tables_say_the_same(tmp_path: Path) -> None:
    rows = ["annotator,sample,method,cp", "ann,s0,A,3", "ann,s1,A,", "bob,s0,A,5"]
    (tmp_path / "all.csv").write_text("\n".join(rows))
    assert read([tmp_path / "all.csv"], ["cp"], (1.0, 5.0)) == [
        Rating("ann", "s0", "A", "cp", 3.0),
        Rating("bob", "s0", "A", "cp", 5.0),
    ]


WRONG = {
    "uid,A\ns0,6": r"line 2: .* off the scale 1 to 5",
    "uid,A\ns0,good": r"line 2: 'good' is no rating",
    "uid,A\ns0,3\ns0,4": r"line 3: .* before",
    'uid,A\ns0,"[3, 4]"': r"line 2: .* holds 2 ratings",
    "uid,A\ns0,": "no ratings",
}


@pytest.mark.parametrize("text", WRONG)
def test_what_cannot_be_a_rating_is_refused_by_its_line(text: str, tmp_path: Path) -> None:
    (tmp_path / "rater.csv").write_text(text)
    with pytest.raises(EvaluationError, match=WRONG[text]):
        read([tmp_path / "rater.csv"], ["cp"], (1.0, 5.0))
