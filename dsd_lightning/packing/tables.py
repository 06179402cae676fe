"""Reads pairs from tables: columns for image, reference and caption in CSV, TSV, JSON, JSON Lines or Parquet."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from dsd_lightning.files.listing import find_file, is_url
from dsd_lightning.files.rows import Row, Table, TableError, named
from dsd_lightning.packing.candidates import Candidate, ImageSource, Orphan, PackingError

KNOWN_COLUMNS: dict[str, tuple[str, ...]] = {
    "image": (
        *("image", "target", "target_image", "image_path", "file_name", "target_file_name", "image_file_name"),
        *("image_tgt_path", "output_image", "edited_image", "output"),
    ),
    "reference": (
        *("conditioning", "conditioning_image", "reference", "reference_image", "control", "control_image"),
        *("cond_image", "reference_path", "reference_file_name", "conditioning_image_file_name"),
        *("conditioning_file_name", "image_paths", "input_image", "source_image", "original_image", "input"),
    ),
    "caption": ("caption", "text", "prompt", "description"),
    "instruction": ("instruction", "edit_prompt", "edit"),
    "mask": ("mask", "subject_mask", "target_mask", "mask_path"),
}
"""Names under which others keep a pair's parts, the likeliest first; `image`, `conditioning` and `caption` are those of
the data set published with Diffusion Self-Distillation, `image_paths` and `image_tgt_path` UNO's, the last ones those
of sets of edits."""


@dataclass(frozen=True)
class Columns:
    """The columns of a pair's parts; `reference` is None for a task without, `instruction` and `mask` if there is none."""

    image: str
    reference: str | None
    caption: str
    instruction: str | None
    mask: str | None = None

    @classmethod
    def find(cls, table: Table, given: Mapping[str, str | None], with_reference: bool) -> Columns:
        """Choose columns of `table`: those `given` by part, else the first of `KNOWN_COLUMNS` that is there.

        Raises:
            PackingError: the table has no columns, not a given one, or none for a part that is needed.
        """
        if not table.columns:
            raise PackingError(f"{table.path} has no rows")
        chosen: dict[str, str | None] = {}
        for part, usual in KNOWN_COLUMNS.items():
            wanted = given.get(part)
            if wanted is not None and wanted not in table.columns:
                raise PackingError(f"{table.path} has no column '{wanted}'; it has: {', '.join(table.columns)}")
            chosen[part] = wanted or next((name for name in usual if name in table.columns), None)
            if part == "caption" and chosen[part] is None:
                # Sets of edits have instructions alone, which are prompts as well.
                chosen[part] = next((name for name in KNOWN_COLUMNS["instruction"] if name in table.columns), None)
            needed = part in ("image", "caption") or (part == "reference" and with_reference)
            if chosen[part] is None and needed:
                raise PackingError(
                    f"{table.path}: which column holds the {part}? It has: {', '.join(table.columns)}; name one with "
                    f"--{part}-column"
                )
        image, caption = chosen["image"], chosen["caption"]
        assert image is not None, "a missing column was refused above"
        assert caption is not None, "a missing column was refused above"
        reference = chosen["reference"] if with_reference else None
        return cls(image, reference, caption, chosen["instruction"], chosen["mask"])


def image_from(row: Row, column: str) -> ImageSource | None:
    """Return the image of a cell: a path relative to the table, bytes, Hugging Face's {bytes, path}, or a list of one.

    None if the cell is empty.

    Raises:
        TableError: the cell holds something else, such as a number or a URL.
    """
    value = row.cells.get(column)
    if isinstance(value, list) and value:
        if len(value) > 1:
            raise TableError(f"{row.where}: column {column!r} names {len(value)} images; a pair has one reference")
        value = value[0]
    if isinstance(value, dict):
        value = value.get("bytes") or value.get("path")
    if isinstance(value, bytes):
        return value or None
    if value is None or (isinstance(value, str) and not value.strip()):
        return None
    if not isinstance(value, str):
        raise TableError(f"{row.where}: column {column!r} holds {named(value)}; an image's path or bytes are needed")
    if is_url(value.strip()):
        raise TableError(
            f"{row.where}: column {column!r} holds the URL {value}; download the images and give their paths"
        )
    path = row.file.parent / value.strip()
    return find_file(path) or path


def name_of(row: Row, column: str) -> str:
    """Return a name for a row: its image's path where there is one, else the table's name and the row's number."""
    value = row.cells.get(column)
    path = value.get("path") if isinstance(value, dict) else value
    if isinstance(path, str) and path.strip():
        return Path(path).with_suffix("").as_posix()
    return f"{row.file.stem}-{row.number:07d}"


class PairTables:
    """One or several tables whose rows are pairs.

    Args:
        tables: the tables, all with the same columns.
        given: names of columns by part ("image", "reference", "caption", "instruction", "mask"); None takes the usual ones.
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
            for row in table:
                yield self._pair(columns, row)

    def _pair(self, columns: Columns, row: Row) -> Candidate | Orphan:
        images: dict[str, ImageSource | None] = {"target": None, "reference": None, "mask": None}
        for frame, column in (("target", columns.image), ("reference", columns.reference), ("mask", columns.mask)):
            if column is None:
                continue
            try:
                image = images[frame] = image_from(row, column)
            except TableError as error:
                return Orphan(row.where, f"unreadable_{frame}", str(error))
            if image is None and frame == "mask":
                continue  # a pair without one weighs all pixels alike
            if image is None:
                return Orphan(row.where, f"missing_{frame}", f"{row.where}: column '{column}' is empty")
            if isinstance(image, Path) and not image.is_file():
                return Orphan(row.where, f"missing_{frame}", f"{row.where}: there is no file {image}")
        try:
            caption = row.text(columns.caption)
            instruction = row.text(columns.instruction) if columns.instruction else None
        except TableError as error:
            return Orphan(row.where, "unreadable_caption", str(error))
        if caption is None:
            return Orphan(row.where, "missing_caption", f"{row.where}: column '{columns.caption}' is empty")
        target = images["target"]
        assert target is not None, "an empty target was returned above"
        provenance = {"source": row.file.name, "row": row.number}
        words = (caption, instruction, provenance)
        return Candidate(name_of(row, columns.image), target, images["reference"], *words, images["mask"])
