"""Stage 1: reads the caption references, normalises, deduplicates and samples them by a seed."""

from __future__ import annotations

import hashlib
import heapq
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from dsd_lightning.distillation.records import DistillationError, Record
from dsd_lightning.files import rows
from dsd_lightning.files.listing import list_files
from dsd_lightning.files.text import TextError, open_text
from dsd_lightning.randomness import key_to_int

NAME = "captions"
_COLUMNS = ("caption", "TEXT", "text", "prompt", "description", "top_caption")
"""Names under which data sets keep captions; LAION's own is TEXT, or caption."""

_SHOWN = 50
"""Files and rows that a message names; further ones are counted."""

_BLANKS = re.compile(r"\s+")
_ID_DIGITS = 12


@runtime_checkable
class CaptionSource(Protocol):
    """Where captions come from."""

    def settings(self) -> Mapping[str, Any]:
        """Return what determines them, as plain JSON."""
        ...

    def texts(self) -> Iterator[str]:
        """Yield them, in any number."""
        ...


class CaptionFiles:
    """Captions in files: tables (LAION-style Parquet, CSV, TSV, JSON, JSONL), or .txt with one caption a line.

    Rows without a caption are skipped.

    Args:
        path: a file, or a folder of them.
        column: the column that holds the captions; None finds it by its usual names.

    Raises:
        DistillationError: no such file, a file of another kind, or no column of that name.
    """

    def __init__(self, path: str | None, column: str | None = None) -> None:
        if path is None:
            raise DistillationError("captions=files needs the captions: captions.path=FILE or FOLDER")
        self.path, self.column = Path(path), column
        if not self.path.exists():
            raise DistillationError(f"captions.path={path}: there is no such file or folder")
        suffixes = (*rows.SUFFIXES, ".txt")
        files = list_files(self.path, recursive=False) if self.path.is_dir() else [self.path]
        self.files = [file for file in files if file.suffix.lower() in suffixes]
        if not self.files:
            raise DistillationError(f"captions.path={path}: no file that ends in {', '.join(suffixes)}")

    def settings(self) -> Mapping[str, Any]:
        """Return names and sizes of the files: their bytes may be too many to read twice."""
        return {"files": [[file.name, file.stat().st_size] for file in self.files], "column": self.column}

    def texts(self) -> Iterator[str]:
        """Yield the captions, file by file.

        Raises:
            DistillationError: after all captions that can be read, naming every file and row that cannot.
        """
        problems: list[str] = []
        for file in self.files:
            try:
                yield from self._texts_of(file, problems)
            except (rows.TableError, TextError, DistillationError) as error:
                problems.append(str(error))
        if problems:
            more = [f"and {len(problems) - _SHOWN} more"] if len(problems) > _SHOWN else []
            raise DistillationError("\n".join(["captions that cannot be read:", *problems[:_SHOWN], *more]))

    def _texts_of(self, file: Path, problems: list[str]) -> Iterator[str]:
        """Yield the captions of a file, and add the rows that hold none for certain to `problems`."""
        if file.suffix.lower() == ".txt":
            with open_text(file) as lines:
                yield from lines
            return
        column = self._column(file, rows.Table(file).columns)
        for row in rows.Table(file, only=(column,)).readable(problems):
            try:
                text = row.text(column)
            except rows.TableError as error:
                problems.append(str(error))
            else:
                yield text or ""

    def _column(self, file: Path, columns: Sequence[str]) -> str:
        names = _COLUMNS if self.column is None else (self.column,)
        column = next((name for name in names if name in columns), None)
        if column is None:
            raise DistillationError(
                f"{file} has no column {' or '.join(names)}; it has {', '.join(columns)}: captions.column=NAME"
            )
        return column


def plain_caption(text: str) -> str:
    """Return a caption in one line without blanks at its ends; backticks, which mark it in prompts, become quotes."""
    return _BLANKS.sub(" ", text).strip().replace("`", "'")


def sample(source: CaptionSource, count: int, seed: int) -> list[Record]:
    """Return `count` captions of those the source has, each once, sampled uniformly by the seed.

    Every text is keyed by itself, so that neither the order of the files nor what else is in them changes its draw beyond
    how many are wanted; memory is that of the captions kept. Ids are of the text, in the order of the draw.

    Raises:
        DistillationError: `count` is less than 1, or there is no caption.
    """
    if count < 1:
        raise DistillationError(f"count={count}: must be at least 1 caption")
    chosen: list[tuple[int, str]] = []  # the smallest draws, as negative numbers: the largest of them on top
    held: set[str] = set()
    for text in map(plain_caption, source.texts()):
        folded = text.lower()
        if not text or folded in held:
            continue
        draw = -key_to_int(seed, "caption", folded)
        if len(chosen) < count:
            heapq.heappush(chosen, (draw, text))
        elif draw > chosen[0][0]:
            _, left = heapq.heapreplace(chosen, (draw, text))
            held.discard(left.lower())
        else:
            continue
        held.add(folded)
    if not chosen:
        raise DistillationError("the source holds no caption")
    ordered = sorted(chosen, reverse=True)
    return [Record(_id(text), {"caption": text}) for _, text in ordered]


def _id(text: str) -> str:
    return hashlib.sha256(text.lower().encode()).hexdigest()[:_ID_DIGITS]
