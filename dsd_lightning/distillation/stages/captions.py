"""Stage 1: which captions are the references? Read, made plain, deduplicated, and sampled with a seed."""

from __future__ import annotations

import csv
import hashlib
import heapq
import importlib
import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from dsd_lightning.distillation.records import DistillationError, Record
from dsd_lightning.randomness import key_to_int

NAME = "captions"
_COLUMNS = ("caption", "TEXT", "text", "prompt", "description", "top_caption")
"""Names under which data sets keep captions; LAION's own is TEXT, or caption."""

_BLANKS = re.compile(r"\s+")
_ID_DIGITS = 12
_ROWS_AT_ONCE = 4096


@runtime_checkable
class CaptionSource(Protocol):
    """Where captions come from."""

    def settings(self) -> Mapping[str, Any]:
        """Return what decides them, plain JSON."""
        ...

    def texts(self) -> Iterator[str]:
        """Yield them, in any number."""
        ...


class CaptionFiles:
    """Captions in files: LAION-style .parquet, .csv, .jsonl, or .txt with one a line.

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
        readers = (".parquet", ".csv", ".jsonl", ".txt")
        found = sorted(self.path.iterdir()) if self.path.is_dir() else [self.path]
        self.files = [file for file in found if file.suffix.lower() in readers]
        if not self.files:
            raise DistillationError(f"captions.path={path}: no file that ends in {', '.join(readers)}")

    def settings(self) -> Mapping[str, Any]:
        """Return names and sizes of the files: their bytes may be too many to read twice."""
        return {"files": [[file.name, file.stat().st_size] for file in self.files], "column": self.column}

    def texts(self) -> Iterator[str]:
        """Yield the captions, file by file."""
        for file in self.files:
            kind = file.suffix.lower()
            if kind == ".parquet":
                yield from self._of_parquet(file)
                continue
            with file.open(encoding="utf-8-sig", errors="replace", newline="" if kind == ".csv" else None) as lines:
                if kind == ".txt":
                    yield from lines
                elif kind == ".csv":
                    for cells in csv.DictReader(lines):
                        yield cells[self._column(file, cells)] or ""
                else:
                    for line in filter(str.strip, lines):
                        row = self._json(file, line)
                        yield str(row[self._column(file, row)])

    def _json(self, file: Path, line: str) -> Mapping[str, Any]:
        try:
            row = json.loads(line)
        except ValueError as error:
            raise DistillationError(f"{file}: a line is not JSON: {error}: {line[:80]}") from error
        if not isinstance(row, dict):
            raise DistillationError(f"{file}: a line is no JSON object: {line[:80]}")
        return row

    def _of_parquet(self, file: Path) -> Iterator[str]:
        try:
            parquet = importlib.import_module("pyarrow.parquet")
        except ImportError as error:
            raise DistillationError(
                f"reading {file.name} needs pyarrow: pip install pyarrow (this project's extra [parquet] brings it)"
            ) from error
        table = parquet.ParquetFile(file)
        column = self._column(file, dict.fromkeys(table.schema_arrow.names))
        for batch in table.iter_batches(batch_size=_ROWS_AT_ONCE, columns=[column]):
            yield from (text or "" for text in batch.column(0).to_pylist())

    def _column(self, file: Path, row: Mapping[str, Any]) -> str:
        wanted = _COLUMNS if self.column is None else (self.column,)
        column = next((name for name in wanted if name in row), None)
        if column is None:
            raise DistillationError(
                f"{file} has no column {' or '.join(wanted)}; it has {', '.join(map(str, row))}: captions.column=NAME"
            )
        return column


def plain_caption(text: str) -> str:
    """Return a caption in one line without blanks at its ends; backticks, which mark it in prompts, become quotes."""
    return _BLANKS.sub(" ", text).strip().replace("`", "'")


def sample(source: CaptionSource, count: int, seed: int) -> list[Record]:
    """Return `count` captions of those the source has, each once, drawn uniformly by the seed.

    Every text is keyed by itself, so that neither the order of the files nor what else is in them decides its lot beyond
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
        raise DistillationError("there is not one caption in the source")
    ordered = sorted(chosen, reverse=True)
    return [Record(_id(text), {"caption": text}) for _, text in ordered]


def _id(text: str) -> str:
    return hashlib.sha256(text.lower().encode()).hexdigest()[:_ID_DIGITS]
