"""Reads pairs from Subjects200K's composites: each panel, with its own caption, and the other as its reference."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from PIL import Image

from dsd_lightning.files.rows import Row, Table, TableError
from dsd_lightning.images.pixels import ImageError, load_rgb
from dsd_lightning.packing.candidates import Candidate, Orphan
from dsd_lightning.packing.tables import image_from, name_of

PADDING = 16
"""Pixels by which a composite is higher than its panels: 8 above and 8 below."""
_SCORES = ("compositeStructure", "objectConsistency", "imageQuality")


def is_composite_table(table: Table) -> bool:
    """Return whether a table has the columns of Subjects200K."""
    return {"image", "description", "quality_assessment"} <= set(table.columns)


def split_composite(image: Image.Image) -> tuple[Image.Image, Image.Image]:
    """Return the left and the right panel of a composite, both square.

    The panels are cut where the data set's authors cut them (src/dataset.py of Yuanshi9815/Subjects200K): of an image 528
    pixels high the left is at columns 8 to 520, the right at 528 to 1040, both at rows 8 to 520.

    Raises:
        ValueError: the image is not about twice as wide as high.
    """
    size, edge = image.height - PADDING, PADDING // 2
    if size < 1 or not 2 * size + PADDING <= image.width <= 2 * image.height + PADDING:
        raise ValueError(
            f"{image.width} x {image.height} is no composite of two square panels with {PADDING} pixels of padding"
        )
    left = image.crop((edge, edge, edge + size, edge + size))
    right = image.crop((size + PADDING, edge, 2 * size + PADDING, edge + size))
    return left, right


class Subjects200K:
    """Tables of two-panel composites; each good row gives two pairs, left from right and right from left.

    Args:
        tables: parquet tables with the columns image, description and quality_assessment.
        min_quality: rows with any of the three scores (0 to 5) below this are left out; 0 keeps all. Rows whose
            `description_valid` is false are left out.
    """

    def __init__(self, tables: Sequence[Table], min_quality: int) -> None:
        self.tables, self.min_quality = tables, min_quality
        self.orphans: list[Orphan] = []

    def __len__(self) -> int:
        return 2 * sum(len(table) for table in self.tables)

    def __iter__(self) -> Iterator[Candidate | Orphan]:
        for table in self.tables:
            for row in table:
                yield from self._pairs(row)

    def _pairs(self, row: Row) -> Iterator[Candidate | Orphan]:
        where = row.where
        scores = row.cells.get("quality_assessment") or {}
        lowest = min((scores.get(name) or 0 for name in _SCORES), default=0)
        if lowest < self.min_quality:
            detail = f"{where}: lowest quality score {lowest} is below {self.min_quality}"
            yield from (Orphan(where, f"quality_below_{self.min_quality}", detail, expected=True) for _ in range(2))
            return
        try:
            source = image_from(row, "image")
            if source is None or (isinstance(source, Path) and not source.is_file()):
                raise FileNotFoundError(f"no image {source or 'in column image'}")
            panels = split_composite(load_rgb(source) if not isinstance(source, Image.Image) else source)
        except (ImageError, FileNotFoundError, ValueError) as error:
            unreadable = {ImageError: "unreadable_target", TableError: "unreadable_target"}
            reason = (unreadable | {FileNotFoundError: "missing_target"}).get(type(error), "no_composite")
            yield from (Orphan(where, reason, f"{where}: {error}") for _ in range(2))
            return
        description = row.cells.get("description") or {}
        if description.get("description_valid") is False:
            detail = f"{where}: its authors mark the description as not valid"
            yield from (Orphan(where, "description_not_valid", detail, expected=True) for _ in range(2))
            return
        name = name_of(row, "image")
        for index in (0, 1):
            caption = Row(row.file, row.number, description).text(f"description_{index}")
            if caption is None:
                yield Orphan(where, "missing_caption", f"{where}: description.description_{index} is empty")
                continue
            provenance = {"source": row.file.name, "row": row.number, "panel": index, "item": description.get("item")}
            provenance["collection"] = row.cells.get("collection")
            yield Candidate(f"{name}-{index}", panels[index], panels[1 - index], caption, provenance=provenance)
