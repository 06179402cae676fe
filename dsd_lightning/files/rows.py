"""Reads tables strictly: CSV, TSV, JSON arrays, JSON Lines and Parquet, row by row.

Nothing is guessed: a row with more or fewer cells than the header, a broken quote, a value of another type than needed
are refused by file and row. Rows count from 1; a header is not counted.
"""

from __future__ import annotations

import csv
import importlib
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from dsd_lightning.files.text import open_text, read_text

SUFFIXES = (".csv", ".tsv", ".jsonl", ".json", ".parquet")
"""Of the files that can be read as tables, in lower case; upper case is accepted as well."""

_DELIMITERS = {".csv": ",", ".tsv": "\t"}
_ROWS_AT_ONCE = 16


class TableError(ValueError):
    """A table that cannot be read; the message names file, row and remedy."""


@dataclass(frozen=True)
class Row:
    """One row: its cells by column.

    Attributes:
        file: the table.
        number: from 1; a header is not counted.
        cells: by column; empty cells of CSV are empty strings, null of JSON and Parquet is None.
    """

    file: Path
    number: int
    cells: Mapping[str, Any]

    @property
    def where(self) -> str:
        """The row's place, for messages."""
        return f"{self.file}, row {self.number}"

    def text(self, column: str) -> str | None:
        """Return the text of a cell without blanks at its ends; None where the cell is empty, null or absent.

        Raises:
            TableError: the cell holds something else than text.
        """
        value = self.cells.get(column)
        if value is None:
            return None
        if not isinstance(value, str):
            raise TableError(f"{self.where}: column {column!r} holds {named(value)}; text is needed")
        return value.strip() or None

    def required_text(self, column: str) -> str:
        """Return the text of a cell.

        Raises:
            TableError: the cell is empty, null or absent, or holds something else than text.
        """
        text = self.text(column)
        if text is None:
            raise TableError(f"{self.where}: column {column!r} is empty")
        return text


class Table:
    """The rows of a file; each iteration reads it again, a few rows at a time.

    Args:
        path: a file with one of `SUFFIXES`.
        only: columns to read; None reads all. Only Parquet gains by it.

    Raises:
        TableError: another kind of file, no header, or a column twice.
        TextError: a text file that is not UTF-8.
        FileNotFoundError: there is no such file.
    """

    def __init__(self, path: Path, only: Sequence[str] | None = None) -> None:
        self.path, self._only = path, only
        self.kind = path.suffix.lower()
        if self.kind not in SUFFIXES:
            raise TableError(f"{path}: a table ends in {', '.join(SUFFIXES)}")
        if not path.is_file():
            raise FileNotFoundError(f"{path}: there is no such file")
        self._count: int | None = None
        self.columns: tuple[str, ...] = self._find_columns()

    def __len__(self) -> int:
        """Return the number of rows; reads a text file once."""
        if self._count is None:
            self._count = (
                int(_parquet(self.path).metadata.num_rows) if self.kind == ".parquet" else sum(1 for _ in self)
            )
        return self._count

    def __iter__(self) -> Iterator[Row]:
        """Yield the rows in order.

        Raises:
            TableError: naming the first row that cannot be read.
        """
        for number, cells in enumerate(self._cells(), start=1):
            if isinstance(cells, TableError):
                raise cells
            yield Row(self.path, number, cells)

    def readable(self, problems: list[str]) -> Iterator[Row]:
        """Yield the rows that can be read, and add the message of each other to `problems`.

        Raises:
            TableError: naming the row after which nothing can be read, such as a broken quote.
        """
        for number, cells in enumerate(self._cells(), start=1):
            if isinstance(cells, TableError):
                problems.append(str(cells))
            else:
                yield Row(self.path, number, cells)

    def _cells(self) -> Iterator[Mapping[str, Any] | TableError]:
        """Yield each row's cells, or what is wrong with it where the next one can be read all the same."""
        if self.kind in _DELIMITERS:
            return self._separated()
        if self.kind == ".jsonl":
            return self._lines()
        return self._array() if self.kind == ".json" else self._batches()

    def _find_columns(self) -> tuple[str, ...]:
        if self.kind in _DELIMITERS:
            with open_text(self.path, newline="") as file:
                return self._header(csv.reader(file, delimiter=_DELIMITERS[self.kind], strict=True))
        if self.kind == ".parquet":
            return self._unique([str(name) for name in _parquet(self.path).schema_arrow.names])
        columns: dict[str, None] = {}
        wrong = None
        for cells in self._cells():
            if isinstance(cells, TableError):
                wrong = wrong or cells
            else:
                columns |= dict.fromkeys(cells)
        if wrong is not None and not columns:
            raise wrong
        return tuple(columns)

    def _header(self, reader: Any) -> tuple[str, ...]:
        try:
            header = next((cells for cells in reader if cells), None)
        except csv.Error as error:
            raise TableError(f"{self.path}: its header cannot be read: {error}") from error
        if header is None:
            raise TableError(f"{self.path} is empty; its first line names the columns")
        return self._unique([name.strip() for name in header])

    def _unique(self, names: list[str]) -> tuple[str, ...]:
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice is not None:
            raise TableError(f"{self.path} has the column {twice!r} twice; rename one")
        return tuple(names)

    def _separated(self) -> Iterator[dict[str, str] | TableError]:
        with open_text(self.path, newline="") as file:
            reader = csv.reader(file, delimiter=_DELIMITERS[self.kind], strict=True)
            names = self._header(reader)
            number = 0
            while True:
                number += 1
                try:
                    cells = next(reader, None)
                except csv.Error as error:
                    raise TableError(
                        f"{self.path}, row {number}: {error}; a quote is missing, or stands within a cell: put cells that "
                        'hold commas, quotes or line breaks in double quotes, and double each quote within ("")'
                    ) from error
                if cells is None:
                    return
                if not cells:
                    number -= 1
                    continue
                if len(cells) != len(names):
                    yield TableError(
                        f"{self.path}, row {number} has {len(cells)} cells, and the header has {len(names)} "
                        f"({', '.join(names)}); put cells that hold a {self.kind[1:].upper()} separator in double quotes"
                    )
                    continue
                yield dict(zip(names, cells, strict=True))

    def _lines(self) -> Iterator[dict[str, Any] | TableError]:
        number = 0
        with open_text(self.path) as file:
            for line in file:
                if line.strip():
                    number += 1
                    try:
                        value = self._json(line, f"row {number}")
                    except TableError as error:
                        yield error
                        continue
                    yield self._object(value, number)

    def _array(self) -> Iterator[dict[str, Any] | TableError]:
        values = self._json(read_text(self.path), "the file")
        if not isinstance(values, list):
            raise TableError(f"{self.path}: an array of objects is needed, not {named(values)}")
        for number, value in enumerate(values, start=1):
            yield self._object(value, number)

    def _json(self, text: str, what: str) -> Any:
        def refuse(constant: str) -> NoReturn:
            raise ValueError(f"{constant} is no JSON number")

        try:
            return json.loads(text, parse_constant=refuse)
        except (ValueError, RecursionError) as error:
            raise TableError(f"{self.path}, {what} is not JSON: {error}") from error

    def _object(self, value: Any, number: int) -> dict[str, Any] | TableError:
        if not isinstance(value, dict):
            return TableError(f"{self.path}, row {number}: a JSON object is needed, not {named(value)}")
        return value

    def _batches(self) -> Iterator[dict[str, Any] | TableError]:
        only = None if self._only is None else list(self._only)
        try:
            for batch in _parquet(self.path).iter_batches(batch_size=_ROWS_AT_ONCE, columns=only):
                yield from batch.to_pylist()
        except (OSError, ValueError) as error:  # pyarrow's ArrowInvalid is a ValueError
            raise TableError(f"{self.path} cannot be read as parquet: {error}") from error


def _parquet(path: Path) -> Any:
    try:
        parquet = importlib.import_module("pyarrow.parquet")
    except ImportError as error:
        raise TableError(
            f"reading {path.name} needs pyarrow: pip install pyarrow (this project's extra [parquet] brings it)"
        ) from error
    try:
        return parquet.ParquetFile(path)
    except (OSError, ValueError) as error:
        raise TableError(f"{path} cannot be read as parquet: {error}") from error


def named(value: Any) -> str:
    """Return a cell's value as messages show it: its kind, and its text shortened."""
    if value is None:
        return "null"
    if isinstance(value, float) and not math.isfinite(value):
        return f"the number {value}"
    kinds = {dict: "an object", list: "a list", bool: "a truth value", int: "a number", float: "a number"}
    text = str(value)
    return f"{kinds.get(type(value), type(value).__name__)} ({text if len(text) <= 40 else text[:37] + '...'})"
