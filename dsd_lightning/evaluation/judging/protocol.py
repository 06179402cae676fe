"""Defines what a judge is asked: measures, repeats, how images are sent, and the order of the payload.

The turns are DreamBench++'s: the rubric (user), an acknowledgement (assistant), the payload (user). Concept preservation
shows the reference first and the generated image second, without text. Prompt following shows the prompt and the
generated image; debiased, also the reference, as the second image (paper, supplement B).
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

from PIL import Image

from dsd_lightning.agents import ImagePart, Message
from dsd_lightning.evaluation.errors import EvaluationError
from dsd_lightning.images.pixels import load_rgb

ENCODED_IN_MEMORY = 512
"""Images kept in memory as they are sent; the questions about one image follow each other."""

PREFIX = "Text prompt: "
"""Stands before the prompt, if a protocol says nothing else."""

REPEATS_AT_MOST = 1000
"""Bound of `Protocol.repeats`, so that attempts at repeats and at retries have different numbers."""


@dataclass(frozen=True)
class Protocol:
    """What the judge is asked.

    Attributes:
        measures: of `judgements.MEASURES`.
        repeats: how often each question is asked.
        image_side: of the squares that are sent, pixels. DreamBench++: 512.
        jpeg_quality: of these images, 1 to 95.
        prompt_prefix: what stands before the prompt. DreamBench++: nothing.
        attempts: how often a question is asked at most until its reply states a score. DreamBench++: 3.
        sampling: parameters that replace the judge's, such as temperature and image_detail; None leaves the judge's.
        answer_tokens: expected length of an answer, for the estimate of what judging costs.
    """

    measures: Sequence[str]
    repeats: int = 1
    image_side: int = 512
    jpeg_quality: int = 90
    prompt_prefix: str = PREFIX
    attempts: int = 1
    sampling: Mapping[str, Any] = field(default_factory=dict)
    answer_tokens: int = 120

    def __post_init__(self) -> None:
        if (
            not self.measures
            or not 1 <= self.repeats <= REPEATS_AT_MOST
            or min(self.image_side, self.attempts) < 1
            or not 1 <= self.jpeg_quality <= 95
        ):
            raise EvaluationError(
                f"measures={list(self.measures)}, repeats={self.repeats}, attempts={self.attempts}, "
                f"image_side={self.image_side}, jpeg_quality={self.jpeg_quality}: at least one measure, repeat, attempt and "
                "pixel, and a quality of 1 to 95"
            )


@lru_cache(maxsize=ENCODED_IN_MEMORY)
def _encoded_once(file: Path, digest: str, side: int, quality: int) -> ImagePart:
    buffer = io.BytesIO()
    load_rgb(file).resize((side, side), Image.Resampling.BICUBIC).save(buffer, "JPEG", quality=quality)
    return ImagePart(buffer.getvalue())


def encoded(file: Path, side: int, quality: int) -> ImagePart:
    """Return an image as it is sent: a square JPEG."""
    # By its digest, too: a file that was generated again is another image.
    return _encoded_once(file, file_sha256(file), side, quality)


@cache
def _digest(file: Path, modified: int, size: int, number: int) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


def file_sha256(file: Path) -> str:
    """Return the digest of a file's bytes, computed once as long as the file is not written again."""
    # By size and inode, too: the clock of a file system may not advance between two writes.
    status = file.stat()
    return _digest(file, status.st_mtime_ns, status.st_size, status.st_ino)


def payload(measure: str, text: str, generated: ImagePart, reference: ImagePart, prefix: str = PREFIX) -> Message:
    """Return the last turn: what is judged, in the order that the measure needs."""
    if measure.endswith("cp"):
        return Message.user(reference, generated)
    prompt = f"{prefix}{text}"
    return Message.user(prompt, generated) if measure == "pf" else Message.user(prompt, generated, reference)
