"""Reads people's ratings: tables of any number of raters with missing cells, and what the study's page has saved."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from dsd_lightning.evaluation.errors import EvaluationError
from dsd_lightning.evaluation.user_study.rating import Rating
from dsd_lightning.evaluation.user_study.rating_files import is_rating_file, read_rating_file
from dsd_lightning.files.rows import Row, Table
from dsd_lightning.files.text import read_text

MISSING = ("", "-", "nan", "n/a", "na", "none", "null")
"""Cells without a rating."""

_ROLES = {"rater": ("rater", "annotator"), "item": ("item", "sample", "uid", "case"), "method": ("method", "model")}
"""Names of the columns of long tables."""


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
