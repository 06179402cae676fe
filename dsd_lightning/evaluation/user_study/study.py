"""Makes a user study, a self-contained page and a key, and scores it: a table of opinions.

As in the paper (Section 4): a random subset of the benchmark, every method's image of it rated from 1 to 5 by concept
preservation, prompt following and creativity. The page hides which method generated an image: names are random, the order
is shuffled, and the key is in a file of its own.
"""

from __future__ import annotations

import base64
import hashlib
import io
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import astuple, fields
from pathlib import Path

from hydra.utils import instantiate
from omegaconf import DictConfig

from dsd_lightning.evaluation.errors import EvaluationError
from dsd_lightning.evaluation.samples.benchmark import Case
from dsd_lightning.evaluation.samples.result_folder import Samples
from dsd_lightning.evaluation.scores import intervals
from dsd_lightning.evaluation.scores.formats import csv_text
from dsd_lightning.evaluation.user_study.rating_files import is_rating_file
from dsd_lightning.evaluation.user_study.rating_tables import read, read_pages
from dsd_lightning.evaluation.user_study.ratings import (
    LEVELS,
    Level,
    Opinion,
    agreement,
    opinions,
    with_overall,
)
from dsd_lightning.files.atomic import write_json, write_text
from dsd_lightning.images.pixels import load_rgb
from dsd_lightning.randomness import numpy_generator

PAGE, KEY = "study.html", "key.json"

CRITERIA = {
    "cp": ("Concept preservation", "Is it the subject of the reference? 1: another one. 5: exactly this one."),
    "pf": ("Prompt following", "Does it show what the text says? 1: nothing of it. 5: all of it."),
    "creativity": (
        "Creativity",
        "Was the subject understood and shown in a new way? 1: copied or senseless. 5: transformed with understanding.",
    ),
}
"""The paper's criteria (Section 4, user study): heading and question."""

SCALE = (1, 5)
_TEMPLATE = Path(__file__).with_name("study_page.html")


def make(config: DictConfig) -> str:
    """Write the page and its key; return their places."""
    benchmark = instantiate(config.benchmark)
    page = make_page(
        [Samples(folder) for folder in config.methods],
        benchmark.cases(),
        config.samples,
        config.seed,
        Path(config.out),
        config.side,
    )
    return f"page  {page}\nkey   {page.with_name(KEY)} (keep it: only the key says which method an image is of)"


def make_page(
    methods: Sequence[Samples], cases: Sequence[Case], count: int, seed: int, folder: Path, side: int = 512
) -> Path:
    """Write `study.html` and `key.json` and return the page.

    Args:
        methods: whose images are rated.
        cases: of the benchmark.
        count: cases to choose at random.
        seed: of subset, names and order.
        folder: for both files.
        side: longest side of an image in the page, pixels; larger ones are scaled down.

    Raises:
        EvaluationError: no methods, too few cases, or an image that is missing.
    """
    if not methods or not 1 <= count <= len(cases):
        raise EvaluationError(
            f"methods={[each.method for each in methods]}, samples={count}: at least one method as methods=[FOLDER], and "
            f"1 to {len(cases)} samples"
        )
    rng = numpy_generator("evaluation", "study", seed)
    chosen = [cases[int(index)] for index in sorted(rng.choice(len(cases), count, replace=False))]
    images: dict[str, str] = {}
    items, hidden = [], {}
    for case in chosen:
        for samples in methods:
            file = samples.image(case)
            if file is None:
                raise EvaluationError(f"{samples.folder} has no image of {case.name}; generate all images first")
            # Random, because a digest of the method's name could be guessed.
            name = rng.bytes(6).hex()
            items.append(
                {
                    "id": name,
                    "prompt": case.prompt.text,
                    "reference": _embedded(case.subject.reference, side, images),
                    "image": _embedded(file, side, images),
                }
            )
            hidden[name] = {"case": case.name, "method": samples.method}
    order = [items[int(index)] for index in rng.permutation(len(items))]
    study = hashlib.sha256(json.dumps([order, sorted(images)]).encode()).hexdigest()[:12]
    content = {
        "study": study,
        "scale": SCALE,
        "criteria": [{"name": name, "title": title, "question": text} for name, (title, text) in CRITERIA.items()],
        "items": order,
        "images": images,
    }
    write_json(folder / KEY, {"study": study, "scale": SCALE, "criteria": list(CRITERIA), "images": hidden})
    # A text must not end the script element that holds it.
    escaped = json.dumps(content).replace("<", "\\u003c")
    write_text(folder / PAGE, _TEMPLATE.read_text(encoding="utf-8").replace("STUDY_JSON", escaped))
    return folder / PAGE


def _embedded(file: Path, side: int, images: dict[str, str]) -> str:
    """Add an image to those of the page and return its name there."""
    image = load_rgb(file)
    image.thumbnail((side, side))
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    name = hashlib.sha256(buffer.getvalue()).hexdigest()[:16]
    images[name] = "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
    return name


def score(config: DictConfig) -> str:
    """Aggregate raters' files; write and return the table of opinions."""
    files = list(config.ratings)
    scale: tuple[float, float] | None
    if files and all(str(file).endswith(".json") for file in files) and not all(map(is_rating_file, map(Path, files))):
        if config.key is None:
            raise EvaluationError("key=null: ratings of the page need the key.json that was written beside it")
        ratings, scale = read_pages(files, config.key)
    else:
        scale = None if config.scale is None else _scale(config.scale)
        ratings = read(files, list(config.criteria), scale)
    if config.level not in LEVELS:
        raise EvaluationError(f"level={config.level!r} is unknown; choose one of {', '.join(LEVELS)}")
    results = opinions(with_overall(ratings) if config.overall else ratings, scale, config.level)
    alphas = {level: agreement(ratings, level) for level in LEVELS}
    folder = Path(config.out)
    columns = [field.name for field in fields(Opinion)]
    write_text(folder / "opinions.csv", csv_text(columns, map(astuple, results)))
    write_text(folder / "opinions.md", to_markdown(results, alphas))
    return f"{to_text(results, alphas)}\ntables  {folder}/opinions.{{csv,md}}"


def _scale(bounds: Sequence[float]) -> tuple[float, float]:
    if len(bounds) != 2 or not bounds[0] < bounds[1]:
        raise EvaluationError(f"scale={list(bounds)}: give the least and the greatest rating, such as scale=[1,5]")
    return float(bounds[0]), float(bounds[1])


_HEADINGS = ("method", "criterion", "mean [95% interval]", "std", "raters' mean ± std", "alpha", "ratings", "missing")


def _rows(results: Sequence[Opinion]) -> list[tuple[str, ...]]:
    return [
        (
            each.method,
            each.criterion,
            f"{each.mean:.3f} {intervals.text(each.low, each.high)}",
            f"{each.std:.3f}",
            f"{each.rater_mean:.3f} ± {each.rater_std:.3f}",
            "-" if math.isnan(each.alpha) else f"{each.alpha:.3f}",
            f"{each.ratings} of {each.items} images by {each.raters} raters",
            str(each.missing),
        )
        for each in results
    ]


def _note(alphas: Mapping[Level, Mapping[str, float]]) -> str:
    lines = [
        f"Krippendorff's alpha ({level}) over all methods: "
        + ", ".join(f"{name} {value:.3f}" for name, value in by_criterion.items())
        for level, by_criterion in alphas.items()
    ]
    return "\n".join([*lines, "Standard deviations are those of a population."])


def to_text(results: Sequence[Opinion], alphas: Mapping[Level, Mapping[str, float]]) -> str:
    """Return opinions for a terminal."""
    rows = [_HEADINGS, *_rows(results)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(_HEADINGS))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    return "\n".join([lines[0], "  ".join("-" * width for width in widths), *lines[1:], "", _note(alphas)])


def to_markdown(results: Sequence[Opinion], alphas: Mapping[Level, Mapping[str, float]]) -> str:
    """Return opinions for Markdown."""
    rows = [_HEADINGS, ("---",) * len(_HEADINGS), *_rows(results)]
    return "\n".join("| " + " | ".join(row) + " |" for row in rows) + f"\n\n{_note(alphas)}\n"
