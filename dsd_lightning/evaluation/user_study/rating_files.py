"""Reads and writes the rating files of DreamBench++: JSON objects of scores by image, `{COLLECTION_ID-PROMPT: score}`.

The raw files of people hold two scores an image, `[concept preservation, prompt following]`, and are named
`GROUP/...-METHOD.json`; merged ones hold one, `GROUP/METHOD-cp.json` and `GROUP/METHOD-pf.json`, as do those of a VLM,
`concept_preservation_NAME/METHOD.json` and `prompt_following_NAME/METHOD.json`. The folder is the rater.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from dsd_lightning.evaluation.errors import EvaluationError
from dsd_lightning.evaluation.judging.judgements import Judgement, Record
from dsd_lightning.evaluation.user_study.rating import Rating
from dsd_lightning.files.atomic import write_json
from dsd_lightning.files.text import read_text

MEASURES = ("cp", "pf")
"""In the order of a pair."""

_FOLDERS = {"concept_preservation": "cp", "prompt_following": "pf"}


def is_rating_file(file: Path) -> bool:
    """Return whether a file is a JSON object of scores by image."""
    if file.suffix.lower() != ".json" or not file.is_file():
        return False
    content = _json(file)
    return isinstance(content, dict) and bool(content) and all(map(_is_rating, content.values()))


def _is_score(value: object) -> bool:
    return value is None or (isinstance(value, (int, float)) and not isinstance(value, bool))


def _is_rating(value: object) -> bool:
    return _is_score(value) or _is_pair(value)


def _is_pair(value: object) -> bool:
    return isinstance(value, list) and len(value) == len(MEASURES) and all(map(_is_score, value))


def read_rating_file(file: Path) -> Iterator[tuple[str, Rating]]:
    """Yield the ratings of a file with where each stands; NaN for null, which is no rating.

    Raises:
        EvaluationError: its name does not say what a single score means.
    """
    for key, value in _json(file).items():
        if isinstance(value, list):
            method, scores = file.stem.rsplit("-", 1)[-1], dict(zip(MEASURES, value, strict=True))
        else:
            method, measure = _single(file)
            scores = {measure: value}
        for measure, score in scores.items():
            number = math.nan if score is None else float(score)
            yield f"{file}: {key}", Rating(file.parent.name or ".", key, method, measure, number)


def _single(file: Path) -> tuple[str, str]:
    """Return the method and the measure of a file with one score an image."""
    method, _, measure = file.stem.rpartition("-")
    if method and measure in MEASURES:
        return method, measure
    for beginning, measure in _FOLDERS.items():
        if file.parent.name.startswith(beginning):
            return file.stem, measure
    raise EvaluationError(
        f"{file}: one score an image, but of what? Name it METHOD-cp.json or METHOD-pf.json, or put it into a folder whose "
        "name begins with concept_preservation or prompt_following"
    )


def _json(file: Path) -> Any:
    try:
        return json.loads(read_text(file))
    except json.JSONDecodeError as error:
        raise EvaluationError(f"{file} is not JSON: {error}") from error


def export(config: DictConfig) -> str:
    """Write the judgements of methods as rating files, a folder a repeat; return their places.

    Raises:
        EvaluationError: there are no judgements of concept preservation and prompt following in a file.
    """
    if not config.rows:
        raise EvaluationError("rows=[]: give files of judgements, such as rows=[ours.jsonl]")
    written = []
    for file in map(Path, config.rows):
        if not file.is_file():
            raise EvaluationError(f"rows: there is no file {file}")
        written += write_rating_files(Record(file).latest(), Path(config.out))
    return "\n".join(f"ratings  {each}" for each in written)


def write_rating_files(judgements: Sequence[Judgement], folder: Path) -> list[Path]:
    """Write `REPEAT/METHOD.json` with pairs, and `REPEAT/METHOD-cp.json` and `-pf.json` with single scores.

    DreamBench++ judges the first copy of an image only, and so does this. What has no score is left out; of pairs, what
    lacks one of both.

    Args:
        judgements: of one method.
        folder: below which a folder for each repeat is written, `run1` and so on.

    Raises:
        EvaluationError: none of them is of concept preservation or prompt following.
    """
    scores: dict[int, dict[str, dict[str, int]]] = {}
    for each in judgements:
        if each.score is not None and each.measure in MEASURES and each.copy == 0:
            key = f"{each.subject}-{each.prompt}"
            scores.setdefault(each.repeat, {}).setdefault(each.measure, {})[key] = each.score
    if not scores:
        raise EvaluationError(f"there are no judgements with a score by {' or '.join(MEASURES)}")
    # Its own code reads methods' names so, too.
    method = judgements[0].method.replace(" ", "_").replace("-", "_").lower()
    written = []
    for repeat, by_measure in sorted(scores.items()):
        place = folder / f"run{repeat + 1}"
        for measure, values in by_measure.items():
            write_json(place / f"{method}-{measure}.json", dict(sorted(values.items())))
        if len(by_measure) == len(MEASURES):
            cp, pf = (by_measure[measure] for measure in MEASURES)
            write_json(place / f"{method}.json", {key: [cp[key], pf[key]] for key in sorted(cp) if key in pf})
        written.append(place)
    return written
