"""Stage 5: splits each grid into its four panels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
from PIL import Image

from dsd_lightning.distillation import panels
from dsd_lightning.distillation.records import GRID, PANELS, DistillationError, Outcome, Record, Rejection, png
from dsd_lightning.images.pixels import ImageError, covering_size, load_rgb


class Split:
    """Crops the panels out of each grid, and rejects what is not two by two.

    Args:
        height, width: of a panel when it is cropped and resized, pixels.
        least: least share of these that a panel must have as it was generated.
        trim: pixels cut off each side of a panel, where colours of two panels may mix.
    """

    name: ClassVar[str] = "split"
    looks_at: ClassVar[tuple[str, ...]] = (GRID,)

    def __init__(self, height: int, width: int, least: float, trim: int) -> None:
        if min(height, width) < 1 or trim < 0 or not 0 < least <= 1:
            raise DistillationError(
                f"split: height={height}, width={width} must be >= 1, trim={trim} >= 0 and least={least} in (0, 1]"
            )
        self.height, self.width, self.least, self.trim = height, width, least, trim

    def settings(self) -> Mapping[str, Any]:
        return {"size": [self.height, self.width], "least": self.least, "trim": self.trim}

    def run(self, records: Sequence[Record]) -> Outcome:
        kept: list[Record] = []
        rejected: list[Rejection] = []
        for record in records:
            try:
                images = self._panels(record.images[GRID])
            except panels.NotTwoByTwo as reason:
                rejected.append(Rejection(record, "not_two_by_two", str(reason)))
                continue
            except ImageError as reason:
                rejected.append(Rejection(record, "unreadable_image", str(reason)))
                continue
            named = {name: png(image) for name, image in zip(PANELS, images, strict=True)}
            kept.append(Record(record.id, record.values, record.stored, named))
        return Outcome(kept, rejected)

    def _panels(self, grid: bytes) -> list[Image.Image]:
        image = load_rgb(grid)
        resized = []
        for box in panels.find_panels(np.asarray(image)):
            edges = (box.left + self.trim, box.top + self.trim, box.right - self.trim, box.bottom - self.trim)
            panel = image.crop(edges)
            if panel.width < self.least * self.width or panel.height < self.least * self.height:
                raise panels.NotTwoByTwo(f"a panel has only {panel.width} x {panel.height} pixels")
            resized.append(self._resized(panel))
        return resized

    def _resized(self, panel: Image.Image) -> Image.Image:
        if panel.size == (self.width, self.height):
            return panel
        width, height = covering_size(panel.size, self.height, self.width)
        panel = panel.resize((width, height), Image.Resampling.LANCZOS)
        left, top = (width - self.width) // 2, (height - self.height) // 2
        return panel.crop((left, top, left + self.width, top + self.height))

    def close(self) -> None:
        pass
