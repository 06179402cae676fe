"""What do people's ratings say? Tables of any number of raters, scales and missing cells; means, deviations, agreement."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dsd_lightning.evaluation.errors import EvaluationError
from dsd_lightning.evaluation.scores.estimates import DRAWS, INTERVAL
from dsd_lightning.evaluation.user_study.agreement import alpha
from dsd_lightning.randomness import numpy_generator

MISSING = ("", "-", "nan", "n/a", "na", "none", "null")
"""Cells that say that there is no rating."""

OVERALL = "overall"
"""Name of the geometric mean of an image's criteria."""

_RATER, _ITEM, _METHOD = ("rater", "annotator"), ("item", "sample", "uid", "case"), ("method", "model")


@dataclass(frozen=True)
class Rating:
    """One rater's score of one method's image, by one criterion."""

    rater: str
    item: str
    method: str
    criterion: str
    score: float


@dataclass(frozen=True)
class Opinion:
    """What all raters say of one method by one criterion.

    Attributes:
        mean: of all ratings.
        low, high: bounds of its 95% bootstrap interval, raters and items drawn anew.
        std: population standard deviation of all ratings.
        rater_mean, rater_std: mean and population standard deviation of the raters' own means.
        alpha: Krippendorff's, ordinal, over the method's items.
        ratings, missing, raters, items: how many.
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


def read(files: Sequence[str | Path], criteria: Sequence[str], scale: tuple[float, float] | None) -> list[Rating]:
    """Read tables of ratings.

    Args:
        files: .csv or .tsv. Either long (columns `rater`, `item`, `method` and one for each criterion, named by it), or wide,
            a file a rater: the first column names the item, the others are methods, and a cell holds a number or a list of
            them such as `[0.5, 1]`, one a criterion. Cells may be empty.
        criteria: names of the criteria, in the order of the lists.
        scale: least and greatest rating; None takes any.

    Raises:
        EvaluationError: naming file, row and what is wrong: a value that is no number or off the scale, other numbers of
            criteria than names, a rater who rates something twice.
    """
    found: list[Rating] = []
    seen: set[tuple[str, str, str, str]] = set()
    for file in map(Path, files):
        for where, rating in _ratings(file, list(criteria)):
            if scale is not None and not scale[0] <= rating.score <= scale[1]:
                raise EvaluationError(
                    f"{where}: {rating.criterion} {rating.score:g} lies off the scale {scale[0]:g} to {scale[1]:g}; correct "
                    "it, or give the scale that was used as scale=[LEAST,GREATEST]"
                )
            key = (rating.rater, rating.item, rating.method, rating.criterion)
            if key in seen:
                raise EvaluationError(f"{where}: {rating.rater} has rated {rating.item} of {rating.method} before")
            seen.add(key)
            found.append(rating)
    if not found:
        raise EvaluationError(f"no ratings in {', '.join(map(str, files)) or 'no file'}")
    return found


def _ratings(file: Path, criteria: list[str]) -> Iterator[tuple[str, Rating]]:
    if not file.is_file():
        raise EvaluationError(f"{file}: there is no such file")
    with file.open(encoding="utf-8-sig", newline="") as lines:
        rows = csv.DictReader(lines, delimiter="\t" if file.suffix == ".tsv" else ",")
        columns = list(rows.fieldnames or ())
        by_role = {role: next((c for c in columns if c.lower() in names), None)
                   for role, names in (("rater", _RATER), ("item", _ITEM), ("method", _METHOD))}  # fmt: skip
        is_long = None not in by_role.values()
        for number, row in enumerate(rows, start=2):
            where = f"{file}, line {number}"
            if is_long:
                rater, item, method = (row[by_role[role] or ""] or "" for role in ("rater", "item", "method"))
                cells = [(method, criterion, row.get(criterion)) for criterion in criteria]
                if absent := [name for name in criteria if name not in columns]:
                    raise EvaluationError(f"{file} has no column {absent[0]}; name those that it has as criteria=[...]")
            else:
                rater, item = file.stem, row[columns[0]]
                cells = [(m, c, v) for m in columns[1:] for c, v in _listed(row.get(m), criteria, where)]
            for method, criterion, cell in cells:
                score = _number(cell, where)
                if score is not None:
                    yield where, Rating(rater, item, method, criterion, score)


def _listed(cell: str | None, criteria: list[str], where: str) -> list[tuple[str, str]]:
    text = (cell or "").strip()
    if text.lower() in MISSING:
        return []
    values = text.strip("[]()").split(",")
    if len(values) != len(criteria):
        raise EvaluationError(
            f"{where}: {text!r} holds {len(values)} ratings, and the criteria are {', '.join(criteria)}; give criteria=[...]"
        )
    return list(zip(criteria, values, strict=True))


def _number(cell: str | None, where: str) -> float | None:
    text = (cell or "").strip()
    if text.lower() in MISSING:
        return None
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise EvaluationError(f"{where}: {text!r} is no rating; leave the cell empty where there is none")
    return value


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


def opinions(ratings: Sequence[Rating]) -> list[Opinion]:
    """Return what the raters say, method by method and criterion by criterion."""
    found = []
    for method in dict.fromkeys(each.method for each in ratings):
        for criterion in dict.fromkeys(each.criterion for each in ratings):
            chosen = [each for each in ratings if (each.method, each.criterion) == (method, criterion)]
            if chosen:
                found.append(_opinion(method, criterion, chosen))
    return found


def agreement(ratings: Sequence[Rating]) -> dict[str, float]:
    """Return Krippendorff's alpha (ordinal) by criterion, over the images of all methods."""
    found = {}
    for criterion in dict.fromkeys(each.criterion for each in ratings):
        chosen = [each for each in ratings if each.criterion == criterion]
        found[criterion] = alpha(_matrix(chosen))
    return found


def _matrix(ratings: Sequence[Rating]) -> NDArray[np.float64]:
    """Return ratings as [raters, images], NaN where there is none."""
    raters = {name: index for index, name in enumerate(sorted({each.rater for each in ratings}))}
    units = {key: index for index, key in enumerate(sorted({(each.method, each.item) for each in ratings}))}
    matrix = np.full((len(raters), len(units)), np.nan)
    for each in ratings:
        matrix[raters[each.rater], units[each.method, each.item]] = each.score
    return matrix


def _opinion(method: str, criterion: str, ratings: Sequence[Rating]) -> Opinion:
    matrix = _matrix(ratings)
    there = ~np.isnan(matrix)
    values = matrix[there]
    by_rater = np.asarray([matrix[row, there[row]].mean() for row in range(len(matrix))])
    rng = numpy_generator("evaluation", "ratings")
    raters, items = (rng.multinomial(n, np.full(n, 1 / n), size=DRAWS).astype(np.float64) for n in matrix.shape)
    totals = ((raters @ np.where(there, matrix, 0)) * items).sum(axis=1)
    numbers = ((raters @ there.astype(np.float64)) * items).sum(axis=1)
    low, high = np.percentile((totals[numbers > 0] / numbers[numbers > 0]), INTERVAL)
    return Opinion(
        method=method,
        criterion=criterion,
        mean=float(values.mean()),
        low=float(low),
        high=float(high),
        std=float(values.std()),
        rater_mean=float(by_rater.mean()),
        rater_std=float(by_rater.std()),
        alpha=alpha(matrix),
        ratings=len(values),
        missing=matrix.size - len(values),
        raters=matrix.shape[0],
        items=matrix.shape[1],
    )


def read_pages(files: Sequence[str | Path], key: str | Path) -> list[Rating]:
    """Read what the study's page saved, one file a rater, and tell the methods that it hid.

    Args:
        files: .json files that raters have sent back.
        key: `key.json`, written beside the page.

    Raises:
        EvaluationError: a file of another study, a rater who comes twice, or a rating that the page cannot have made.
    """
    hidden: dict[str, Any] = json.loads(Path(key).read_text(encoding="utf-8"))
    low, high = hidden["scale"]
    found: list[Rating] = []
    raters: dict[str, Path] = {}
    for file in map(Path, files):
        saved = json.loads(file.read_text(encoding="utf-8"))
        if saved.get("study") != hidden["study"]:
            raise EvaluationError(f"{file} is of study {saved.get('study')}, and {key} of {hidden['study']}")
        rater = str(saved.get("rater") or file.stem)
        if rater in raters:
            raise EvaluationError(f"{file}: the rater {rater!r} is also in {raters[rater]}; keep one file of each")
        raters[rater] = file
        for name, scores in saved["ratings"].items():
            image = hidden["images"].get(name)
            if image is None:
                raise EvaluationError(f"{file}: the image {name!r} is not in {key}")
            for criterion, score in scores.items():
                if criterion not in hidden["criteria"] or not (isinstance(score, int) and low <= score <= high):
                    raise EvaluationError(f"{file}: {criterion} {score!r} of {name} is no rating of this study")
                found.append(Rating(rater, image["case"], image["method"], criterion, float(score)))
    if not found:
        raise EvaluationError(f"no ratings in {', '.join(map(str, files)) or 'no file'}")
    return found
