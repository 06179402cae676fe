"""What is one image's order, and how does a table of them look?"""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any


class GenerationError(ValueError):
    """An order that cannot be carried out; the message names the flag or the row, the value and the remedy."""


@dataclass(frozen=True)
class Job:
    """One order: a reference image, a text, where the result goes, and how it is drawn.

    Attributes:
        image, text, output: the reference, the prompt, and a .png file.
        seed: of the first image's noise; -1 stands for a drawn one.
        num_images: images, with seeds counted up; with more than one, outputs are numbered: out_1.png, out_2.png.
        size: (height, width) of a frame, pixels; None for that of the model's training.
        guidance, i_guidance, t_guidance, steps: as the flags of these names.
    """

    image: Path
    text: str
    output: Path
    seed: int = -1
    num_images: int = 1
    size: tuple[int, int] | None = None
    guidance: float = 3.5
    i_guidance: float = 1.0
    t_guidance: float = 1.0
    steps: int = 28

    def __post_init__(self) -> None:
        if not self.text.strip():
            raise GenerationError(f"text={self.text!r} for {self.output} is empty: say what to draw")
        if self.output.suffix.lower() != ".png":
            raise GenerationError(f"output_path={self.output}: images are written as .png")
        if not -1 <= self.seed < 2**63:
            raise GenerationError(f"seed={self.seed} must be >= 0, or -1 for a drawn one")
        if self.num_images < 1 or self.steps < 1:
            raise GenerationError(f"num_images={self.num_images} and steps={self.steps} must be at least 1")
        if not all(math.isfinite(value) for value in (self.guidance, self.i_guidance, self.t_guidance)):
            raise GenerationError(
                f"guidance={self.guidance}, i_guidance={self.i_guidance}, t_guidance={self.t_guidance} must be finite"
            )
        if min(self.i_guidance, self.t_guidance) < 0:
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


def with_seed(job: Job, drawn: int) -> Job:
    """Return `job`, with the seed `drawn` if it leaves the choice open."""
    return replace(job, seed=drawn) if job.seed == -1 else job


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
    if len(sides) not in (1, 2) or min(sides) < 1:
        raise GenerationError(f"size={text}: give SIDE or HEIGHTxWIDTH in pixels, such as 512 or 512x768")
    return sides[0], sides[-1]


_NAMES = {"image_path": "image", "output_path": "output", "prompt": "text"}
_KINDS: dict[str, Any] = {
    "image": Path,
    "text": str,
    "output": Path,
    "seed": int,
    "num_images": int,
    "size": parse_size,
    "guidance": float,
    "i_guidance": float,
    "t_guidance": float,
    "steps": int,
}


def read_jobs(file: Path, defaults: dict[str, Any]) -> list[Job]:
    """Return the jobs of a .csv or .jsonl file; paths are relative to it, empty cells take the defaults.

    Args:
        file: with a column for image, text and output each, and any other of `Job`'s.
        defaults: values for what a row leaves out, by the names of `Job`.

    Raises:
        GenerationError: naming file and row: a column that is missing or unknown, a value that cannot be read, or two
            rows with one output.
    """
    jobs: list[Job] = []
    owners: dict[Path, int] = {}
    for number, row in _rows(file):
        where = f"{file}, row {number}"
        given = {_NAMES.get(name, name): value for name, value in row.items() if value not in (None, "")}
        if unknown := sorted(set(given) - set(_KINDS)):
            raise GenerationError(f"{where}: unknown column {unknown[0]!r}; known are {', '.join(_KINDS)}")
        if missing := [name for name in ("image", "text", "output") if name not in given]:
            raise GenerationError(f"{where}: no value for {', '.join(missing)}")
        try:
            values = {name: _KINDS[name](value) for name, value in given.items()}
            job = Job(**(defaults | values))
        except (TypeError, ValueError) as error:
            raise GenerationError(f"{where}: {error}") from error
        job = replace(job, image=file.parent / job.image, output=file.parent / job.output)
        for output in job.outputs():
            if output in owners:
                raise GenerationError(f"{where}: writes {output}, as row {owners[output]} does; name another output")
            owners[output] = number
        jobs.append(job)
    if not jobs:
        raise GenerationError(f"{file} has no rows")
    return jobs


def _rows(file: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    if file.suffix.lower() not in (".csv", ".jsonl"):
        raise GenerationError(f"--jobs {file}: a .csv or .jsonl file is needed")
    if not file.is_file():
        raise GenerationError(f"--jobs {file}: there is no such file")
    with file.open(encoding="utf-8-sig", newline="") as lines:
        if file.suffix.lower() == ".csv":
            yield from enumerate(csv.DictReader(lines, restkey="too many cells"), start=1)
            return
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except ValueError as error:
                raise GenerationError(f"{file}, row {number}: not JSON: {error}") from error
            if not isinstance(row, dict):
                raise GenerationError(f"{file}, row {number}: a JSON object is needed")
            yield number, row


assert set(_KINDS) == {field.name for field in fields(Job)}, "every field of a job can stand in a table"
