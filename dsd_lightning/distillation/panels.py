"""Finds the four panels of a grid by its borders, gutters and seams; an image that cannot be cut for certain is refused."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dsd_lightning.distillation.grid_lines import (
    Division,
    Gutter,
    NotDivided,
    Values,
    border_width,
    find_gutter,
    find_seam,
)

LEAST_SIDE = 32
"""Least side of a grid within its border, pixels: lines and seams cannot be distinguished in fewer."""

SAME_COLOR = 0.15
"""Greatest difference of the two gutters' colours, on the [0, 1] scale."""


class NotTwoByTwo(ValueError):
    """The image is not divided into two by two panels for certain; the message says where it differs."""


@dataclass(frozen=True)
class Box:
    """A panel: from (left, top) to (right, bottom), pixels, the latter not included."""

    left: int
    top: int
    right: int
    bottom: int


def find_panels(image: NDArray[np.uint8]) -> list[Box]:
    """Return the four equal panels of a grid [h, w, 3], row by row.

    Raises:
        NotTwoByTwo: the image is tiny, or has no division into 2 x 2, an unequal or finer one, or more than one.
    """
    _require_side(image.shape[1], image.shape[0], "it has")
    values = image.astype(np.float32) / 255
    turned = values.swapaxes(0, 1)
    top, bottom = border_width(values), len(values) - border_width(values[::-1])
    left, right = border_width(turned), len(turned) - border_width(turned[::-1])
    _require_side(right - left, bottom - top, "within its border it has")
    across, down = _divisions(values[top:bottom, left:right])
    rows = [(top, top + down.end), (top + down.start, bottom)]
    columns = [(left, left + across.end), (left + across.start, right)]
    return [Box(x0, y0, x1, y1) for y0, y1 in rows for x0, x1 in columns]


def _require_side(width: int, height: int, where: str) -> None:
    if min(width, height) < LEAST_SIDE:
        raise NotTwoByTwo(f"{where} {width} x {height} pixels, at least {LEAST_SIDE} on a side are needed")


def _divisions(values: Values) -> tuple[Division, Division]:
    """Return the division between the columns and that between the rows: two gutters of one colour, or two seams."""
    axes = {"columns": values.swapaxes(0, 1), "rows": values}
    gutters: list[Gutter | None] = []
    problems = []
    for name, lines in axes.items():
        try:
            gutters.append(find_gutter(lines))
        except NotDivided as problem:
            problems.append(f"between two {name}: {problem}")
            gutters.append(None)
    across, down = gutters
    if across is not None and down is not None:
        if np.abs(across.color - down.color).max() > SAME_COLOR:
            raise NotTwoByTwo("the two gutters differ in colour")
        return across, down
    seams = []
    for name, lines in axes.items():
        try:
            seams.append(find_seam(lines))
        except NotDivided as problem:
            raise NotTwoByTwo("; ".join([*problems, f"between two {name}: {problem}"])) from None
    return seams[0], seams[1]
