"""Describes one generation job, and reads tables of jobs."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from dsd_lightning.files.listing import is_url
from dsd_lightning.files.rows import Row, Table
from dsd_lightning.generation.provenance import FORMATS

MOST_IMAGES, MOST_STEPS, LARGEST_SIDE = 10_000, 10_000, 16_384
"""Of a job, and of a frame in pixels: more is a mistake, or somebody's malice, that would fill the memory."""

LONGEST_NAME = 255
"""Bytes of a file's or folder's name, on all usual file systems."""


class GenerationError(ValueError):
    """A job that cannot be carried out; the message names the flag or the row, the value and the remedy."""


@dataclass(frozen=True)
class Job:
    """A reference image, a text, an output file, and the settings of the sampler.

    Attributes:
        image, text, output: the reference, the prompt, and a file with an ending of `FORMATS`.
        seed: of the first image's noise; -1 stands for a random one.
        num_images: images, with seeds counted up; with more than one, outputs are numbered: out_1.png, out_2.png.
        size: (height, width) of a frame, pixels; None for that of the model's training.
        guidance, i_guidance, t_guidance, steps: as the flags of these names; None for the model's own.
    """

    image: Path
    text: str
    output: Path
    seed: int = -1
    num_images: int = 1
    size: tuple[int, int] | None = None
    guidance: float | None = None
    i_guidance: float | None = None
    t_guidance: float | None = None
    steps: int | None = None

    def __post_init__(self) -> None:
        for name, path in (("image_path", self.image), ("output_path", self.output)):
            if is_url(str(path)):
                raise GenerationError(f"{name}={path} is a URL: give a file of this machine (download the image first)")
            if "\0" in str(path) or any(len(os.fsencode(part)) > LONGEST_NAME for part in path.parts):
                raise GenerationError(
                    f"{name}={str(path)[:100]}: no file has such a name; at most {LONGEST_NAME} bytes, none of them zero"
                )
        if not self.text.strip():
            raise GenerationError(f"text={self.text!r} for {self.output} is empty: describe the image")
        if self.output.suffix.lower() not in FORMATS:
            raise GenerationError(f"output_path={self.output}: images are written as {', '.join(FORMATS)}")
        if self.num_images < 1 or (self.steps is not None and self.steps < 1):
            raise GenerationError(f"num_images={self.num_images} and steps={self.steps} must be at least 1")
        if self.num_images > MOST_IMAGES or (self.steps or 1) > MOST_STEPS:
            raise GenerationError(
                f"num_images={self.num_images} must be at most {MOST_IMAGES}, and steps={self.steps} at most {MOST_STEPS}"
            )
        if not -1 <= self.seed <= 2**63 - self.num_images:
            raise GenerationError(f"seed={self.seed} must be >= 0 and below 2**63, or -1 for a random one")
        given = [value for value in (self.guidance, self.i_guidance, self.t_guidance) if value is not None]
        if not all(math.isfinite(value) for value in given):
            raise GenerationError(
                f"guidance={self.guidance}, i_guidance={self.i_guidance}, t_guidance={self.t_guidance} must be finite"
            )
        if any(value is not None and value < 0 for value in (self.i_guidance, self.t_guidance)):
            raise GenerationError(
                f"i_guidance={self.i_guidance} and t_guidance={self.t_guidance} must be >= 0; 1.0 means none"
            )

    def outputs(self) -> list[Path]:
        """Return the files of the job, one an image."""
        if self.num_images == 1:
            return [self.output]
        return [self.output.with_stem(f"{self.output.stem}_{index + 1}") for index in range(self.num_images)]


def one_line(text: str) -> str:
    """Return a text without line breaks and outer spaces, as the official command passes it on."""
    return text.strip().replace("\n", "").replace("\r", "")


def with_seed(job: Job, seed: int) -> Job:
    """Return `job`, with `seed` if it has none of its own."""
    return replace(job, seed=seed) if job.seed == -1 else job


def parse_size(text: Any) -> tuple[int, int] | None:
    """Return (height, width) of "512" or "512x768"; None of nothing.

    Raises:
        GenerationError: if it cannot be read.
    """
    if text in (None, ""):
        return None
    try:
        sides = [int(side) for side in str(text).lower().split("x")]
    except ValueError:
        sides = []
    if len(sides) not in (1, 2) or min(sides) < 1 or max(sides) > LARGEST_SIDE:
        raise GenerationError(
            f"size={text}: give SIDE or HEIGHTxWIDTH in pixels, such as 512 or 512x768, and at most {LARGEST_SIDE}"
        )
    return sides[0], sides[-1]


def _number(value: Any) -> float:
    """Return the number in a cell: a number of JSON, or its text of CSV."""
    if isinstance(value, str):
        value = float(value)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError
    return float(value)


def _whole(value: Any) -> int:
    if isinstance(value, str) and re.fullmatch(r"\s*[-+]?[0-9]+\s*", value):
        value = int(value)  # not by way of float, which rounds large seeds
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    number = _number(value)
    if not number.is_integer():
        raise ValueError
    return int(number)


_NAMES = {"image_path": "image", "output_path": "output", "prompt": "text"}
_TEXTS = ("image", "text", "output")
_NUMBERS: dict[str, tuple[str, Callable[[Any], Any]]] = {
    "seed": ("a whole number", _whole),
    "num_images": ("a whole number", _whole),
    "size": ("SIDE or HEIGHTxWIDTH", parse_size),
    "guidance": ("a number", _number),
    "i_guidance": ("a number", _number),
    "t_guidance": ("a number", _number),
    "steps": ("a whole number", _whole),
}
assert {*_TEXTS, *_NUMBERS} == {field.name for field in fields(Job)}, "a table can hold every field of a job"


def read_jobs(file: Path, defaults: dict[str, Any]) -> list[Job]:
    """Return the jobs of a table (see `files.rows`); paths are relative to it, empty cells take the defaults.

    Args:
        file: with a column for image, text and output each, and any other of `Job`'s.
        defaults: values for what a row leaves out, by the names of `Job`.

    Raises:
        GenerationError: naming file and row: a column that is unknown, a value that is missing or wrong, or two rows with
            one output.
        TableError: the table cannot be read, or holds something else than text where text is needed.
    """
    jobs: list[Job] = []
    owners: dict[Path, int] = {}
    for row in Table(file):
        job = _job(row, defaults)
        for output in job.outputs():
            if output in owners:
                raise GenerationError(
                    f"{row.where}: writes {output}, as row {owners[output]} does; name another output"
                )
            owners[output] = row.number
        jobs.append(job)
    if not jobs:
        raise GenerationError(f"{file} has no rows")
    return jobs


def _job(row: Row, defaults: dict[str, Any]) -> Job:
    columns = {_NAMES.get(name, name): name for name, value in row.cells.items() if value not in (None, "")}
    if unknown := sorted(set(columns) - {*_TEXTS, *_NUMBERS}):
        raise GenerationError(
            f"{row.where}: unknown column {unknown[0]!r}; a job has {', '.join((*_TEXTS, *_NUMBERS))}"
        )
    if missing := [name for name in _TEXTS if name not in columns]:
        raise GenerationError(f"{row.where}: no value for {', '.join(missing)}")
    values: dict[str, Any] = {name: row.required_text(columns[name]) for name in _TEXTS}
    for name, (kind, parse) in _NUMBERS.items():
        if name in columns:
            value = row.cells[columns[name]]
            try:
                values[name] = parse(value)
            except GenerationError as error:
                raise GenerationError(f"{row.where}: {error}") from error
            except (TypeError, ValueError, OverflowError) as error:
                raise GenerationError(f"{row.where}: {name}={value!r} must be {kind}") from error
    for name in ("image", "output"):
        values[name] = row.file.parent / values[name]
    try:
        job = Job(**(defaults | values))
        # Not x/../o.png, which is there only once x is, and then is o.png.
        return replace(job, output=job.output.parent.resolve() / job.output.name) if ".." in job.output.parts else job
    except GenerationError as error:
        raise GenerationError(f"{row.where}: {error}") from error
