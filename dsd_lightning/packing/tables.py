"""Which pairs are in a table? metadata.jsonl, .csv or .parquet with columns for image, reference and caption."""

from __future__ import annotations

import csv
import importlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from dsd_lightning.packing.candidates import Candidate, ImageSource, Orphan, PackingError, clean_text

KNOWN_COLUMNS: dict[str, tuple[str, ...]] = {
    "image": ("image", "target", "target_image", "image_path", "file_name", "target_file_name", "image_file_name"),
    "reference": (
        *(
            "conditioning",
            "conditioning_image",
            "reference",
            "reference_image",
            "control",
            "control_image",
            "cond_image",
        ),
        *("reference_path", "reference_file_name", "conditioning_image_file_name", "conditioning_file_name"),
    ),
    "caption": ("caption", "text", "prompt", "description"),
    "instruction": ("instruction", "edit_prompt", "edit"),
}
"""Names under which others keep a pair's parts, the likeliest first; `image`, `conditioning` and `caption` are those of
the data set published with Diffusion Self-Distillation."""

_ROWS_AT_ONCE = 16


@runtime_checkable
class Table(Protocol):
    """Rows by number, each a mapping from column to value."""

    path: Path
    columns: tuple[str, ...]

    def __len__(self) -> int:
        """Return the number of rows."""
        ...

    def __iter__(self) -> Iterator[Mapping[str, Any]]:
        """Yield the rows in order."""
        ...


class TextTable:
    """The rows of a .jsonl or .csv file.

    Raises:
        PackingError: a line that is not a JSON object, or an empty file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            with path.open(encoding="utf-8-sig", newline="") as file:
                self._rows = (
                    list(csv.DictReader(file)) if path.suffix.lower() == ".csv" else list(self._json_rows(file))
                )
        except UnicodeDecodeError as error:
            raise PackingError(f"{path} is not UTF-8 text ({error.reason}); save it as UTF-8") from error
        self.columns = tuple(dict.fromkeys(str(column) for row in self._rows for column in row))
        if not self._rows:
            raise PackingError(f"{path} has no rows")

    def _json_rows(self, lines: Iterable[str]) -> Iterator[dict[str, Any]]:
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except ValueError as error:
                raise PackingError(f"{self.path}, line {number}: not JSON: {error}") from error
            if not isinstance(row, dict):
                raise PackingError(f"{self.path}, line {number}: a JSON object is needed, not {type(row).__name__}")
            yield row

    def __len__(self) -> int:
        return len(self._rows)

    def __iter__(self) -> Iterator[Mapping[str, Any]]:
        return iter(self._rows)


class ParquetTable:
    """The rows of a .parquet file, read a few at a time, since images may lie within.

    Raises:
        PackingError: pyarrow is not installed, or the file is no parquet file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            parquet = importlib.import_module("pyarrow.parquet")
        except ImportError as error:
            raise PackingError(
                f"reading {path.name} needs pyarrow: pip install pyarrow (this project's extra [parquet] brings it)"
            ) from error
        try:
            self._file = parquet.ParquetFile(path)
        except (OSError, ValueError) as error:  # pyarrow's ArrowInvalid is a ValueError
            raise PackingError(f"{path} cannot be read as parquet: {error}") from error
        self.columns = tuple(map(str, self._file.schema_arrow.names))

    def __len__(self) -> int:
        return int(self._file.metadata.num_rows)

    def __iter__(self) -> Iterator[Mapping[str, Any]]:
        for batch in self._file.iter_batches(batch_size=_ROWS_AT_ONCE):
            yield from batch.to_pylist()


def open_table(path: Path) -> Table:
    """Open a table by its suffix.

    Raises:
        PackingError: an unknown suffix, or an unreadable file.
    """
    suffix = path.suffix.lower()
    if suffix == ".parquet":
        return ParquetTable(path)
    if suffix in (".jsonl", ".csv"):
        return TextTable(path)
    raise PackingError(f"{path}: tables are .jsonl, .csv or .parquet files")


@dataclass(frozen=True)
class Columns:
    """The columns that hold a pair's parts; `reference` is None for a task without, `instruction` if there is none."""

    image: str
    reference: str | None
    caption: str
    instruction: str | None

    @classmethod
    def find(cls, table: Table, given: Mapping[str, str | None], with_reference: bool) -> Columns:
        """Choose columns of `table`: those `given` by part, else the first of `KNOWN_COLUMNS` that is there.

        Raises:
            PackingError: a given column is not there, or none is found for a part that is needed.
        """
        chosen: dict[str, str | None] = {}
        for part, known in KNOWN_COLUMNS.items():
            wanted = given.get(part)
            if wanted is not None and wanted not in table.columns:
                raise PackingError(f"{table.path} has no column '{wanted}'; it has: {', '.join(table.columns)}")
            chosen[part] = wanted or next((name for name in known if name in table.columns), None)
            needed = part in ("image", "caption") or (part == "reference" and with_reference)
            if chosen[part] is None and needed:
                raise PackingError(
                    f"{table.path}: which column holds the {part}? It has: {', '.join(table.columns)}; name one with "
                    f"--{part}-column"
                )
        image, caption = chosen["image"], chosen["caption"]
        assert image is not None, "a missing column was refused above"
        assert caption is not None, "a missing column was refused above"
        return cls(image, chosen["reference"] if with_reference else None, caption, chosen["instruction"])


def image_from(value: Any, folder: Path) -> ImageSource | None:
    """Return the image in a table's cell: a path (relative to `folder`), bytes, or Hugging Face's {bytes, path}."""
    if isinstance(value, dict):
        value = value.get("bytes") or value.get("path")
    if isinstance(value, bytes):
        return value
    return folder / value if isinstance(value, str) and value.strip() else None


def name_of(value: Any, table: Path, row: int) -> str:
    """Return a name for a row: its image's path where there is one, else the table's name and the row's number."""
    path = value.get("path") if isinstance(value, dict) else value
    if isinstance(path, str) and path.strip():
        return Path(path).with_suffix("").as_posix()
    return f"{table.stem}-{row:07d}"


class PairTables:
    """One or several tables whose rows are pairs.

    Args:
        tables: the tables, all with the same columns.
        given: names of columns by part ("image", "reference", "caption", "instruction"); None finds the usual ones.
        with_reference: False for a task without reference.

    Raises:
        PackingError: a column is missing.
    """

    def __init__(self, tables: Sequence[Table], given: Mapping[str, str | None], with_reference: bool) -> None:
        self.tables = tables
        self.columns = [Columns.find(table, given, with_reference) for table in tables]
        self.orphans: list[Orphan] = []

    def __len__(self) -> int:
        return sum(len(table) for table in self.tables)

    def __iter__(self) -> Iterator[Candidate | Orphan]:
        for table, columns in zip(self.tables, self.columns, strict=True):
            for number, row in enumerate(table):
                yield self._pair(table.path, columns, number, row)

    def _pair(self, path: Path, columns: Columns, number: int, row: Mapping[str, Any]) -> Candidate | Orphan:
        where = f"{path.name}, row {number}"
        folder = path.parent
        images: dict[str, ImageSource | None] = {
            "target": image_from(row.get(columns.image), folder),
            "reference": None,
        }
        if columns.reference is not None:
            images["reference"] = image_from(row.get(columns.reference), folder)
        for frame, column in (("target", columns.image), ("reference", columns.reference)):
            image = images[frame]
            if column is not None and image is None:
                return Orphan(where, f"missing_{frame}", f"{where}: column '{column}' is empty")
            if isinstance(image, Path) and not image.is_file():
                return Orphan(where, f"missing_{frame}", f"{where}: there is no file {image}")
        caption = clean_text(row.get(columns.caption))
        if caption is None:
            return Orphan(where, "missing_caption", f"{where}: column '{columns.caption}' is empty")
        instruction = clean_text(row.get(columns.instruction)) if columns.instruction else None
        name = name_of(row.get(columns.image), path, number)
        target = images["target"]
        assert target is not None, "an empty target was returned above"
        provenance = {"source": path.name, "row": number}
        return Candidate(name, target, images["reference"], caption, instruction, provenance)
