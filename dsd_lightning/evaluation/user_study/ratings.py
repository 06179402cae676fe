"""Evaluates people's ratings: tables of any number of raters, scales and missing cells; means, deviations, agreement."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import krippendorff
import numpy as np
from numpy.typing import NDArray

from dsd_lightning.evaluation.errors import EvaluationError
from dsd_lightning.evaluation.scores import intervals
from dsd_lightning.evaluation.user_study.rating import Rating
from dsd_lightning.evaluation.user_study.rating_files import is_rating_file, read_rating_file
from dsd_lightning.files.rows import Row, Table
from dsd_lightning.files.text import read_text

MISSING = ("", "-", "nan", "n/a", "na", "none", "null")
"""Cells without a rating."""

OVERALL = "overall"
"""Name of the geometric mean of an image's criteria."""

_ROLES = {"rater": ("rater", "annotator"), "item": ("item", "sample", "uid", "case"), "method": ("method", "model")}
"""Names of the columns of long tables."""

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


def read(files: Sequence[str | Path], criteria: Sequence[str], scale: tuple[float, float] | None) -> list[Rating]:
    """Read tables of ratings.

    Args:
        files: rating files of DreamBench++ (see `rating_files`), or tables (see `files.rows`). Either long (columns
            `rater`, `item`, `method` and one for each criterion, named by it), or wide, a file a rater: the first column
            names the item, the others are methods, and a cell holds a number or a list of them such as `[0.5, 1]`, one a
            criterion. Cells may be empty.
        criteria: names of the criteria, in the order of the lists.
        scale: least and greatest rating; None takes any.

    Raises:
        EvaluationError: naming file, row and fault: a value that is no number or off the scale, a number of ratings other
            than that of the criteria, a rater who rates something twice.
        TableError: a table that cannot be read.
    """
    ratings: dict[tuple[str, str, str, str], Rating] = {}
    for file in map(Path, files):
        for where, rating in _ratings(file, list(criteria)):
            if scale is not None and not math.isnan(rating.score) and not scale[0] <= rating.score <= scale[1]:
                raise EvaluationError(
                    f"{where}: {rating.criterion} {rating.score:g} is off the scale {scale[0]:g} to {scale[1]:g}; correct "
                    "it, or give the scale that was used as scale=[LEAST,GREATEST]"
                )
            key = (rating.rater, rating.item, rating.method, rating.criterion)
            before = ratings.get(key)
            if before is not None and not math.isnan(before.score):
                if math.isnan(rating.score):
                    continue
                raise EvaluationError(f"{where}: {rating.rater} has rated {rating.item} of {rating.method} before")
            ratings[key] = rating
    return _some(list(ratings.values()), files)


def _some(ratings: list[Rating], files: Sequence[str | Path]) -> list[Rating]:
    if all(math.isnan(each.score) for each in ratings):
        raise EvaluationError(f"no ratings in {', '.join(map(str, files)) or 'no file'}")
    return ratings


def _ratings(file: Path, criteria: list[str]) -> Iterator[tuple[str, Rating]]:
    if is_rating_file(file):
        yield from read_rating_file(file)
        return
    table = Table(file)
    columns = list(table.columns)
    roles = {role: next((c for c in columns if c.lower() in names), None) for role, names in _ROLES.items()}
    is_long = None not in roles.values()
    if is_long and (absent := [name for name in criteria if name not in columns]):
        raise EvaluationError(f"{file} has no column {absent[0]}; name those that it has as criteria=[...]")
    for row in table:
        if is_long:
            rater, item, method = (row.required_text(str(roles[role])) for role in _ROLES)
            cells = [(method, criterion, row.cells.get(criterion)) for criterion in criteria]
        else:
            rater, item = file.stem, row.required_text(columns[0])
            cells = [(m, c, v) for m in columns[1:] for c, v in _listed(row, m, criteria)]
        for method, criterion, cell in cells:
            yield row.where, Rating(rater, item, method, criterion, _number(cell, row.where))


def _listed(row: Row, column: str, criteria: list[str]) -> list[tuple[str, Any]]:
    cell = row.cells.get(column)
    if isinstance(cell, str):
        cell = None if cell.strip().lower() in MISSING else cell.strip().strip("[]()").split(",")
    values = cell if isinstance(cell, list) else [cell]
    if values == [None]:
        values = [None] * len(criteria)
    if len(values) != len(criteria):
        raise EvaluationError(
            f"{row.where}: {row.cells.get(column)!r} holds {len(values)} ratings, and the criteria are {', '.join(criteria)}; "
            "give criteria=[...]"
        )
    return list(zip(criteria, values, strict=True))


def _number(cell: Any, where: str) -> float:
    """Return the rating in a cell of a table (text in CSV, a number or null in JSON and Parquet); NaN if it is empty."""
    if cell is None or (isinstance(cell, str) and cell.strip().lower() in MISSING):
        return math.nan
    try:
        value = math.nan if isinstance(cell, bool) else float(cell)
    except (TypeError, ValueError):
        value = math.nan
    if not math.isfinite(value):
        raise EvaluationError(f"{where}: {cell!r} is no rating; leave the cell empty if there is none")
    return value


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


def read_pages(files: Sequence[str | Path], key: str | Path) -> tuple[list[Rating], tuple[float, float]]:
    """Read the files that the study's page saved, one a rater, and replace hidden names by methods.

    Returns:
        The ratings, NaN for what a rater left out, and their scale.

    Args:
        files: .json files that raters have sent back.
        key: `key.json`, written beside the page.

    Raises:
        EvaluationError: a file of another study or without ratings, a rater who comes twice, or an impossible rating.
    """
    hidden = _json_object(Path(key))
    low, high = hidden["scale"]
    result: list[Rating] = []
    raters: dict[str, Path] = {}
    for file in map(Path, files):
        saved = _json_object(file)
        if saved.get("study") != hidden["study"]:
            raise EvaluationError(f"{file} is of study {saved.get('study')}, and {key} of {hidden['study']}")
        rater = str(saved.get("rater") or file.stem)
        if rater in raters:
            raise EvaluationError(f"{file}: the rater {rater!r} is also in {raters[rater]}; keep one file of each")
        raters[rater] = file
        ratings = saved.get("ratings")
        if not isinstance(ratings, dict) or not all(isinstance(scores, dict) for scores in ratings.values()):
            raise EvaluationError(
                f"{file}: ratings={ratings!r}; scores by image and criterion are needed, as the page saves"
            )
        for name, scores in ratings.items():
            if name not in hidden["images"]:
                raise EvaluationError(f"{file}: the image {name!r} is not in {key}")
            for criterion, score in scores.items():
                if criterion not in hidden["criteria"] or not (isinstance(score, int) and low <= score <= high):
                    raise EvaluationError(f"{file}: {criterion} {score!r} of {name} is no rating of this study")
        for name, image in hidden["images"].items():
            for criterion in hidden["criteria"]:
                score = ratings.get(name, {}).get(criterion, math.nan)
                result.append(Rating(rater, image["case"], image["method"], criterion, float(score)))
    return _some(result, files), (float(low), float(high))


def _json_object(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(read_text(file))
    except json.JSONDecodeError as error:
        raise EvaluationError(f"{file} is not JSON: {error}") from error
    if not isinstance(content, dict):
        raise EvaluationError(f"{file}: a JSON object is needed")
    return content
