"""Defines what a source of pairs yields: candidates, whose images are not yet decoded, and orphans, which lack a part."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from PIL import Image

ImageSource = Path | bytes | Image.Image
"""An image as a source has it: a file, the bytes of a file, or decoded already."""

IMAGE_SUFFIXES = frozenset(
    {".webp", ".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".gif", ".avif", ".jfif", ".ppm", ".pgm"}
)
_LONGEST_STEM = 150


class PackingError(ValueError):
    """The source, or the options for it, cannot be packed; the message says what to do."""


@dataclass(frozen=True)
class Candidate:
    """A pair as its source describes it.

    Attributes:
        name: its place in the source, for messages; its key is made from it.
        target: the target image.
        reference: the reference image; None where the task has none.
        caption: what the target shows.
        instruction: what to do to the reference to get the target, where the source has such a sentence.
        provenance: where the pair comes from; plain JSON.
        mask: where the target shows its subject, white on black; None where the source has none.
    """

    name: str
    target: ImageSource
    reference: ImageSource | None
    caption: str
    instruction: str | None = None
    provenance: Mapping[str, Any] = field(default_factory=dict)
    mask: ImageSource | None = None


@dataclass(frozen=True)
class Orphan:
    """Something in the source that makes no pair: its place, and why (a word to count by, a sentence to read).

    `expected` marks what is left out on purpose (a quality threshold, files of other kinds): counted, but no reason to refuse.
    """

    name: str
    reason: str
    detail: str
    expected: bool = False


@runtime_checkable
class Source(Protocol):
    """A user's images and captions, as pairs. Iterating it reads no image files."""

    orphans: list[Orphan]
    """Orphans that file names alone show, before anything is read."""

    def __len__(self) -> int:
        """Return the number of things that iterating yields, to show progress."""
        ...

    def __iter__(self) -> Iterator[Candidate | Orphan]:
        """Yield candidates, and orphans that only reading shows, always in the same order."""
        ...


class Keys:
    """Makes keys from names: readable, free of dots, slashes and blanks, unique; the same for the same sequence."""

    def __init__(self) -> None:
        self._used: set[str] = set()
        self._next: dict[str, int] = {}

    def make(self, name: str) -> str:
        """Return a new key for `name`; where the plain one is used already it gets -2, -3, ..."""
        plain = unicodedata.normalize("NFKD", name).encode("ascii", "ignore").decode()
        plain = re.sub(r"[^A-Za-z0-9-]+", "_", plain).strip("_-")[:_LONGEST_STEM] or "pair"
        key, number = plain, self._next.get(plain, 2)
        while key in self._used:
            key, number = f"{plain}-{number}", number + 1
        self._next[plain] = number
        self._used.add(key)
        return key
