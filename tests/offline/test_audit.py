"""The oracle's shares come with intervals over grids, whose pairs are not independent."""

from __future__ import annotations

from typing import Any

import pytest

from dsd_lightning.distillation.records import Record
from dsd_lightning.miniature.world import Identity
from dsd_lightning.offline.audit import shares

LABELS = ("yes", "no", "yes", "ambiguous", "yes", "no", "yes", "yes")
"""Of the first pair of each grid."""


def audited(copies: int, grids: int = len(LABELS)) -> dict[str, Any]:
    """Return the shares of grids with so many equal pairs each, every second of which the judge keeps."""
    pairs, labels = [], {}
    for grid in range(grids):
        for number in range(copies):
            pair = Record(f"{grid:04d}-{number:02d}", {"same": grid % 2 == 0, "confidence": None})
            pairs.append(pair)
            labels[pair.id] = LABELS[grid % len(LABELS)]
    return shares(pairs, labels, ())


def test_more_pairs_of_a_grid_are_no_more_evidence_and_more_grids_are() -> None:
    few, copied, many = audited(1), audited(6), audited(1, 8 * len(LABELS))
    assert (few["grids"], few["pairs"], copied["grids"], copied["pairs"]) == (8, 8, 8, 48)
    assert few["before"] == copied["before"] == many["before"] == 5 / 7
    low, high = few["intervals"]["before"]
    assert 0 < low < 5 / 7 < high < 1
    assert copied["intervals"] == {name: pytest.approx(bounds) for name, bounds in few["intervals"].items()}
    narrow = many["intervals"]["before"]
    assert low < narrow[0] < 5 / 7 < narrow[1] < high


def test_the_gain_of_a_judge_is_measured_on_the_same_grids() -> None:
    """A judge that is right of every grid gains in each, though grids differ: the shares' own intervals overlap."""
    pairs, labels = [], {}
    for grid in range(24):
        for number in range(6):
            good = number >= 3 if grid % 2 else number >= 1
            pair = Record(f"{grid:04d}-{number:02d}", {"same": good or number == 0, "confidence": None})
            pairs.append(pair)
            labels[pair.id] = "yes" if good else "no"
    values = shares(pairs, labels, ())
    assert values["gain"] == values["after"] - values["before"]
    low, high = values["intervals"]["gain"]
    assert 0 < low < values["gain"] < high
    before, after = values["intervals"]["before"], values["intervals"]["after"]
    assert high - low < (before[1] - before[0]) + (after[1] - after[0])


def test_diversity_counts_each_character_once() -> None:
    pairs = [Record(f"{grid}-0", {"same": True, "confidence": None}) for grid in range(4)]
    one, other = Identity(0, 0, 1, 0, 0, 0), Identity(1, 0, 1, 0, 0, 0)
    values = shares(pairs, dict.fromkeys((pair.id for pair in pairs), "yes"), [one, one, other, one])
    assert (values["clear_grids"], values["distinct"]) == (4, 0.5)
    assert values["intervals"]["distinct"] == pytest.approx((0.150, 0.850), abs=1e-3)  # Wilson, 2 of 4


def test_what_has_no_value_or_does_not_vary_has_no_interval() -> None:
    alone = Record("0-0", {"same": True, "confidence": None})
    values = shares([alone], {alone.id: "ambiguous"}, ())
    assert (values["before"], values["ambiguous"]) == (None, 1.0)
    assert set(values["intervals"].values()) == {None}
