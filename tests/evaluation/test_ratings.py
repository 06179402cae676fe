"""Shows that raters' means, deviations and agreement are those of libraries and the literature, also with cells missing."""

from __future__ import annotations

import json
from pathlib import Path

import krippendorff
import numpy as np
import pytest

from dsd_lightning.evaluation.errors import EvaluationError
from dsd_lightning.evaluation.judging.judgements import Judgement
from dsd_lightning.evaluation.user_study.rating import Rating
from dsd_lightning.evaluation.user_study.rating_files import write_rating_files
from dsd_lightning.evaluation.user_study.rating_tables import read
from dsd_lightning.evaluation.user_study.ratings import LEVELS, agreement, alpha, opinions, with_overall
from dsd_lightning.files.rows import TableError

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


def test_alpha_has_the_textbook_values_on_every_level_and_none_where_it_is_undefined() -> None:
    assert alpha(KRIPPENDORFF_2011, "nominal") == pytest.approx(0.743, abs=0.0005)
    assert alpha(KRIPPENDORFF_2011, "ordinal") == pytest.approx(0.815, abs=0.0005)
    assert alpha(KRIPPENDORFF_2011, "interval") == pytest.approx(0.849, abs=0.0005)
    for undefined in ([[3, 3], [3, 3]], [[1, N], [N, 2]], [[N], [N]]):
        assert np.isnan(alpha(np.asarray(undefined, dtype=np.float64)))


WIDE = {
    "ann.tsv": "uid\tA\tB\ns0\t[0, 1]\t[1,0.5]\ns1\t[0.5, 1]\t\ns2\t[1, 1]\t[0, 0]\n",
    "bob.tsv": "uid\tA\tB\ns0\t[0.5, 1]\t[1, 1]\ns1\t[0.5, 0.5]\t[0, 1]\ns2\t[1, 1]\t[0, 0.5]\n",
}


def test_wide_tables_of_several_raters_with_other_scales_and_empty_cells(tmp_path: Path) -> None:
    for name, text in WIDE.items():
        (tmp_path / name).write_text(text)
    ratings = read([tmp_path / name for name in WIDE], ["sc", "pq"], None)
    by_method = {(each.method, each.criterion): each for each in opinions(with_overall(ratings), None)}
    one = by_method["A", "sc"]
    assert one.mean == pytest.approx(np.mean([0, 0.5, 1, 0.5, 0.5, 1]))
    assert one.std == pytest.approx(np.std([0, 0.5, 1, 0.5, 0.5, 1]))
    assert one.rater_std == pytest.approx(np.std([0.5, 2 / 3]))
    assert one.low <= one.mean <= one.high
    partial = by_method["B", "sc"]
    assert (partial.ratings, partial.missing, partial.raters, partial.items) == (5, 1, 2, 3)
    assert partial.mean == pytest.approx(np.mean([1, 0, 1, 0, 0]))
    assert partial.rater_mean == pytest.approx(np.mean([0.5, 1 / 3]))
    assert by_method["A", "overall"].mean == pytest.approx(np.mean([0, 0.5**0.5, 1, 0.5**0.5, 0.5, 1]))
    library = krippendorff.alpha(
        reliability_data=np.asarray([[0, 0.5, 1, 1, N, 0], [0.5, 0.5, 1, 1, 0, 0]]), level_of_measurement="ordinal"
    )
    assert agreement(ratings)["sc"] == pytest.approx(library)


LONG = {
    "all.csv": "annotator,sample,method,cp\nann,s0,A,3\nann,s1,A,\nbob,s0,A,5",
    "all.jsonl": "\n".join(
        f'{{"rater": "{rater}", "item": "{item}", "method": "A", "cp": {score}}}'
        for rater, item, score in (("ann", "s0", 3), ("ann", "s1", "null"), ("bob", "s0", 5))
    ),
}


@pytest.mark.parametrize("name", LONG)
def test_long_tables_give_the_same_ratings(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(LONG[name])
    ratings = read([tmp_path / name], ["cp"], (1.0, 5.0))
    assert [each for each in ratings if not np.isnan(each.score)] == [
        Rating("ann", "s0", "A", "cp", 3.0),
        Rating("bob", "s0", "A", "cp", 5.0),
    ]
    # s1 was asked and nobody rated it.
    (opinion,) = opinions(ratings, (1.0, 5.0))
    assert (opinion.ratings, opinion.missing, opinion.raters, opinion.items) == (2, 2, 2, 1)


def test_rating_files_of_dreambenchpp_are_read_written_and_agree_as_its_code_computes_it(tmp_path: Path) -> None:
    judgements = []
    for copy in (0, 1):  # a second copy is not judged by DreamBench++
        for prompt, (cp, pf) in enumerate([(4, 3), (0, None), (2, 1)]):
            for measure, score in (("cp", cp), ("pf", pf)):
                question = ("A Method-1", "object_00_cup", "object", prompt, "photorealistic", copy, measure, 0)
                judgements.append(Judgement(*question, "image", "reference", "text", "r", "judge", None, score))
    (folder,) = write_rating_files(judgements, tmp_path / "vlm")
    assert json.loads((folder / "a_method_1.json").read_text()) == {
        "object_00_cup-0": [4, 3],
        "object_00_cup-2": [2, 1],
    }
    assert json.loads((folder / "a_method_1-cp.json").read_text()) == {
        "object_00_cup-0": 4,
        "object_00_cup-1": 0,
        "object_00_cup-2": 2,
    }
    people = tmp_path / "group1" / "part1-a_method_1.json"
    people.parent.mkdir()
    people.write_text('{"object_00_cup-0": [3, 3], "object_00_cup-2": [1, null], "object_00_cup-3": [2, 0]}')
    ratings = read([folder / "a_method_1-cp.json", folder / "a_method_1-pf.json", people], ["cp", "pf"], (0.0, 4.0))
    by_criterion = {each.criterion: each for each in opinions(ratings, (0.0, 4.0), "interval")}
    # krippendorff_analysis.py: the union of the keys, NaN where a rater has none, on the interval level.
    published = krippendorff.alpha(
        reliability_data=np.asarray([[4, 0, 2, N], [3, N, 1, 2]]), level_of_measurement="interval"
    )
    assert by_criterion["cp"].alpha == pytest.approx(published)
    assert (
        by_criterion["cp"].method,
        by_criterion["cp"].raters,
        by_criterion["cp"].items,
        by_criterion["cp"].missing,
    ) == ("a_method_1", 2, 4, 2)
    assert list(LEVELS) == ["nominal", "ordinal", "interval"]
    assert agreement(ratings, "interval")["cp"] == pytest.approx(published)
    assert agreement(ratings, "nominal")["cp"] != agreement(ratings, "ordinal")["cp"]
    (tmp_path / "group1" / "bare.json").write_text('{"object_00_cup-0": 3}')
    with pytest.raises(EvaluationError, match=r"bare\.json: one score an image, but of what\?"):
        read([tmp_path / "group1" / "bare.json"], ["cp"], (0.0, 4.0))


WRONG = {
    "uid,A\ns0,6": r"row 1: .* off the scale 1 to 5",
    "uid,A\ns0,good": r"row 1: 'good' is no rating",
    "uid,A\ns0,3\ns0,4": r"row 2: .* before",
    'uid,A\ns0,"[3, 4]"': r"row 1: .* holds 2 ratings",
    "uid,A\ns0,": "no ratings",
    "uid,A\ns0,3,4": "row 1 has 3 cells",
}


@pytest.mark.parametrize("text", WRONG)
def test_what_cannot_be_a_rating_is_refused_by_its_row(text: str, tmp_path: Path) -> None:
    (tmp_path / "rater.csv").write_text(text)
    with pytest.raises((EvaluationError, TableError), match=WRONG[text]):
        read([tmp_path / "rater.csv"], ["cp"], (1.0, 5.0))
