"""Finds the four panels of a grid by separators, borders and seams in its pixels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Values = NDArray[np.floating[Any]]

EVEN = 1 / 255 * 6
"""Greatest standard deviation of a line of pixels that is one colour, on the [0, 1] scale."""

SEPARATOR_CONTRAST = 0.08
"""Least difference of a separator's colour from the panels' mean beside it; a plain image is no separator."""

JUMP = 0.035
"""Least mean colour difference of two neighbouring lines of pixels where two panels meet, on the [0, 1] scale."""

OVER_NEIGHBOURS = 1.5
"""Least ratio of a seam's colour difference to the typical one of the lines around it."""

ASIDE = 0.15
"""How far from the middle a division may be, share of the image's side."""

WIDEST_BORDER = 0.08
"""Widest border or separator that is cut off, share of the image's side."""


LEAST_SIDE = 32
"""Least side of a grid, pixels: lines and seams cannot be distinguished in fewer."""


class NotTwoByTwo(ValueError):
    """The image is not divided into two by two panels; the message says where it differs."""


@dataclass(frozen=True)
class Box:
    """A panel: from (left, top) to (right, bottom), pixels, the latter not included."""

    left: int
    top: int
    right: int
    bottom: int


def find_panels(image: NDArray[np.uint8]) -> list[Box]:
    """Return the four panels of a grid [h, w, 3], row by row.

    Raises:
        NotTwoByTwo: there is no division into 2 x 2, or a finer one, or the image is tiny.
    """
    if min(image.shape[:2]) < LEAST_SIDE:
        raise NotTwoByTwo(
            f"it has {image.shape[1]} x {image.shape[0]} pixels, at least {LEAST_SIDE} on a side are needed"
        )
    values = image.astype(np.float32) / 255
    top, bottom = _without_border(values)
    left, right = _without_border(values.transpose(1, 0, 2))
    inner = values[top:bottom, left:right]
    across = _division(inner.transpose(1, 0, 2), "columns")
    down = _division(inner, "rows")
    # A wide panel above two small ones has no division in its own half.
    for name, half in (
        ("top", inner[: down[0]]),
        ("bottom", inner[down[1] :]),
    ):
        _require_seam(half.transpose(1, 0, 2), across, f"the {name} half has one panel")
    for name, half in (("left", inner[:, : across[0]]), ("right", inner[:, across[1] :])):
        _require_seam(half, down, f"the {name} half has one panel")
    rows = [(top, top + down[0]), (top + down[1], bottom)]
    columns = [(left, left + across[0]), (left + across[1], right)]
    return [Box(x0, y0, x1, y1) for y0, y1 in rows for x0, x1 in columns]


def _even_lines(values: Values) -> NDArray[np.bool_]:
    """Return of each row of `values` [n, m, 3] whether it has one colour."""
    return np.asarray(values.std(axis=1).max(axis=-1) < EVEN)


def _without_border(values: Values) -> tuple[int, int]:
    """Return (first, end) of the rows that are left when a border of one colour is cut off both ends."""
    count = len(values)
    widest = int(count * WIDEST_BORDER)
    even = _even_lines(values)
    color = values.mean(axis=1)

    def thickness(lines: range) -> int:
        first = color[lines[0]]
        for depth, line in enumerate(lines):
            if depth > widest:
                return 0  # an even background, not a border
            if not even[line] or np.abs(color[line] - first).max() > EVEN:
                return depth
        return 0

    before, after = thickness(range(count)), thickness(range(count - 1, -1, -1))
    return before, count - after


def _separators(values: Values) -> list[tuple[int, int]]:
    """Return the runs of rows (first, end) that have one colour, stand out from both sides, and are narrow."""
    even = _even_lines(values)
    edges = np.flatnonzero(np.diff(np.concatenate([[False], even, [False]]).astype(np.int8)))
    runs = []
    for first, end in zip(edges[::2], edges[1::2], strict=True):
        inside = first > 0 and end < len(values)
        if inside and end - first <= len(values) * WIDEST_BORDER:
            color = values[first:end].mean(axis=(0, 1))
            beside = np.stack([values[first - 1], values[end]])
            if np.abs(beside - color).mean() > SEPARATOR_CONTRAST:
                runs.append((int(first), int(end)))
    return runs


def _jumps(values: Values) -> Values:
    """Return the mean colour difference of each row from the one before it, [n - 1]."""
    return np.asarray(np.abs(np.diff(values, axis=0)).mean(axis=(1, 2)))


def _division(values: Values, lines: str) -> tuple[int, int]:
    """Return (end of the first panel, start of the second one) along the rows of `values`."""
    count = len(values)
    separators = _separators(values)
    if len(separators) > 1:
        raise NotTwoByTwo(f"{len(separators) + 1} {lines}, by their separators")
    if separators:
        first, end = separators[0]
        if abs((first + end) / 2 - count / 2) > ASIDE * count:
            raise NotTwoByTwo(f"the separator of the {lines} is at {(first + end) / 2 / count:.2f} of the side")
        return first, end
    middle = count // 2
    reach = int(ASIDE * count)
    jumps = _jumps(values)
    near = np.arange(middle - 1, middle + 2)
    best = int(near[np.argmax(jumps[near - 1])])
    if _is_seam(jumps, best):
        return best, best
    window = np.arange(middle - reach, middle + reach + 1)
    best = int(window[np.argmax(jumps[window - 1])])
    if _is_seam(jumps, best) and jumps[best - 1] > 2 * np.partition(jumps[window - 1], -2)[-2]:
        return best, best
    raise NotTwoByTwo(f"no division between two {lines}")


def _is_seam(jumps: Values, line: int) -> bool:
    jump = float(jumps[line - 1])
    return jump > JUMP and jump > OVER_NEIGHBOURS * float(np.median(jumps))


def _require_seam(values: Values, division: tuple[int, int], otherwise: str) -> None:
    first, end = division
    if end > first:
        if not _even_lines(values)[first:end].all():
            raise NotTwoByTwo(otherwise)
    # A generated seam may be several pixels wide: the lines beside it are compared, not two neighbouring lines.
    elif (
        float(np.abs(values[first + 1 : first + 3].mean(axis=0) - values[first - 3 : first - 1].mean(axis=0)).mean())
        < JUMP
    ):
        raise NotTwoByTwo(otherwise)
