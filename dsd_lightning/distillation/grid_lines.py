"""Finds what divides an image into two equal halves: a gutter of one colour, or a seam where two panels meet.

All functions look along axis 0 of `values` [n, m, 3], in [0, 1]: a line is a row. Distances are counted in pixels of an
image of `REFERENCE_SIDE`, so that a teacher of 1024 pixels, whose transitions are wider, is read as one of 256.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Values = NDArray[np.floating[Any]]

REFERENCE_SIDE = 256
"""Side of an image in which distances are counted as they are, pixels."""

WIDEST_BORDER = 0.2
WIDEST_GUTTER = 0.1
"""Widest that is cut off, share of the side."""

UNEQUAL = 0.02
"""Greatest difference of the two halves, share of the larger one: teachers are asked for equal panels."""

CLEAN = 0.02
"""Greatest mean deviation of a border's outermost line from its own colour, and least step where a band ends."""

VISIBLE = 0.03
"""Least mean difference of a panel from the gutter beside it, on the [0, 1] scale."""

CLEANER = 0.5
"""Greatest deviation of a gutter from its colour, as a share of that of the panels beside it; blur mixes the two."""

LABELLED = 0.4
"""Greatest share of a gutter's length that writing may cover."""

FAR = 0.5
"""Deviations are counted up to this, so that little black writing does not outweigh a gutter."""

JUMP = 0.02
"""Least mean colour difference where two panels meet."""

OVER_SURROUNDINGS = 2.0
"""Least ratio of the difference at a seam to the typical one of the lines around, for a segment to show it."""

SHOWN = 0.75
"""Least share of the segments of a half line that show a seam; a photograph's own edges rarely run so far."""

OVER_TYPICAL = 1.6
"""Least ratio of a half line's difference at a seam to the typical one around it."""

SHARPER = 1.3
"""Least ratio of a half line's difference at a seam to that two lines away; a photograph's own edges are wider."""

FINER = 0.6
"""Share of the segments of a line; where more show it, it is a seam of a finer grid."""

RIVAL = 0.8
"""A line beside the seam that shows in this share of the seam's segments may be a gutter's other edge."""

SEGMENTS = 8
"""Into which each half of a line is divided."""


class NotDivided(ValueError):
    """The image has no certain division into two; the message says why."""


@dataclass(frozen=True)
class Division:
    """Two halves: the first ends at `end`, the second starts at `start`."""

    end: int
    start: int


@dataclass(frozen=True)
class Gutter(Division):
    """Two halves with a band of one `color` [3] between."""

    color: Values


def border_width(values: Values) -> int:
    """Return how many first lines are a border of one colour."""
    levels = _deviation(values, np.median(values[0], axis=0)).mean(axis=1)
    if levels[0] > CLEAN:
        return 0
    return _band_end(levels, int(WIDEST_BORDER * len(values)), _scale(values)) or 0


def find_gutter(values: Values) -> Gutter | None:
    """Return the gutter between two equal halves; None where no band of one colour crosses the middle.

    Raises:
        NotDivided: there is a band, but it is no gutter between two equal panels for certain.
    """
    count, scale = len(values), _scale(values)
    line, color = _evenest_line(values)
    parts = _halves(_deviation(values, color))
    # Writing covers less than half of a line: the median does not see it.
    levels = np.median(parts, axis=(0, 2))
    limit = int(WIDEST_GUTTER * count)
    after, before = _band_end(levels[line:], limit, scale), _band_end(levels[line::-1], limit, scale)
    if after is None or before is None:
        return None
    division = Gutter(line - before + 1, line + after, color)
    if division.start - division.end > limit:
        raise NotDivided(f"the gutter takes {(division.start - division.end) / count:.2f} of the side")
    _require_equal(division, count)
    _require_gutter(parts, division, scale)
    _require_no_other_gutter(levels, division, scale)
    return division


def find_seam(values: Values) -> Division:
    """Return the seam between two equal halves.

    Raises:
        NotDivided: no line near the middle, or more than one, differs from its neighbours along all of its length.
    """
    count, scale = len(values), _scale(values)
    jumps = _halves(_jumps(values, scale))
    # From the middle by half of what the halves may differ.
    reach = max(1, round(UNEQUAL / 4 * count))
    near = np.arange(count // 2 - reach, (count + 1) // 2 + reach + 1)
    shown = {int(line): _shown(jumps, int(line), scale) for line in near}
    seam = max(shown, key=lambda line: (shown[line].mean(axis=-1).min(), jumps[:, line].mean()))
    differences = jumps[:, seam].mean(axis=-1)
    typical = np.median(jumps[:, _around(seam, jumps, scale)].mean(axis=-1), axis=1)
    in_halves = shown[seam].mean(axis=-1)
    if in_halves.min() < SHOWN or (differences < np.maximum(JUMP, OVER_TYPICAL * typical)).any():
        raise NotDivided("no division" if in_halves.max() < SHOWN else "a half without division")
    beside, further = (jumps[:, [seam - width, seam + width]].mean(axis=-1).max(axis=1) for width in (scale, 2 * scale))
    if (differences < np.maximum(beside, SHARPER * further)).any():
        raise NotDivided("no sharp division")
    _require_no_finer(jumps, scale)
    if _beside_gutter(values, jumps, seam, scale):
        raise NotDivided("a gutter beside the seam, whose other edge is uncertain")
    return Division(seam, seam)


def _scale(values: Values) -> int:
    return max(1, round(min(values.shape[:2]) / REFERENCE_SIDE))


def _deviation(values: Values, color: Values) -> Values:
    """Return the difference of each pixel from a colour, [n, m], mean of the channels."""
    return np.minimum(np.abs(values - color).mean(axis=-1), FAR)


def _halves(values: Values) -> Values:
    """Return the mean of `values` [n, m] in each segment of each half line, [2, n, SEGMENTS].

    The middle is left out, where the other axis has its division, and the ends.
    """
    count, length = values.shape
    first = slice(int(0.02 * length), int(0.45 * length))
    last = slice(length - first.stop, length - first.start)
    width = (first.stop - first.start) // SEGMENTS
    halves = [
        values[:, half][:, : width * SEGMENTS].reshape(count, SEGMENTS, width).mean(axis=2) for half in (first, last)
    ]
    return np.stack(halves)


def _band_end(levels: Values, limit: int, scale: int) -> int | None:
    """Return how many first lines, at least 1, are a band: up to where `levels` [n] step up most; None without a step."""
    best, end = 0.0, None
    for line in range(1, min(limit, len(levels) - 4 * scale) + 1):
        outside = float(levels[line : line + 4 * scale].mean())
        step = outside - float(levels[:line].max())
        if end is None and (step < CLEAN or step < CLEANER * outside):
            continue
        if step > best:
            best, end = step, line
        elif step < 0.7 * best:  # past the transition; what follows is the panel's own
            break
    return end


def _evenest_line(values: Values) -> tuple[int, Values]:
    """Return the line near the middle that is closest to one colour, and that colour."""
    count = len(values)
    reach = UNEQUAL / 2 * count + 1
    lines = range(int(count / 2 - reach), int(np.ceil(count / 2 + reach)) + 1)
    colors = {line: np.median(values[line], axis=0) for line in lines}

    def unevenness(line: int) -> tuple[float, float]:
        parts = np.sort(_halves(_deviation(values[line : line + 1], colors[line])).ravel())
        # The clearest three quarters, as writing covers the rest; of equal lines the one in the middle.
        return round(float(parts[: len(parts) * 3 // 4].mean()), 3), abs(line + 0.5 - count / 2)

    line = min(lines, key=unevenness)
    return line, colors[line]


def _require_equal(division: Division, count: int) -> None:
    halves = division.end, count - division.start
    if abs(halves[0] - halves[1]) > UNEQUAL * max(halves) + 1:
        raise NotDivided(f"halves of {halves[0]} and {halves[1]} pixels")


def _require_gutter(parts: Values, division: Division, scale: int) -> None:
    """Require a gutter along all of its length, seen against the panels beside it."""
    end, start = division.end, division.start
    inside = parts[:, (end + start - 1) // 2]
    beside = np.stack(
        [
            parts[:, max(0, end - 5 * scale) : end - scale].mean(axis=1),
            parts[:, start + scale : start + 5 * scale].mean(axis=1),
        ]
    )
    level = np.median(inside, axis=-1)
    seen = (beside.mean(axis=-1) - level > VISIBLE) & (level < CLEANER * beside.mean(axis=-1))
    if not seen.any(axis=0).all():
        raise NotDivided("a half without division")
    if not seen.any(axis=1).all():
        raise NotDivided("a gutter whose edge is not visible")
    strongest = beside.max(axis=0)
    telling = strongest > 2 * VISIBLE
    covered = telling & (inside > CLEANER * strongest)
    for half in range(2):
        if telling[half].sum() < SEGMENTS // 2 - 1 or covered[half].sum() > LABELLED * telling[half].sum():
            raise NotDivided("a half without division")


def _require_no_other_gutter(levels: Values, division: Division, scale: int) -> None:
    """Require that no second band of the gutter's colour crosses a half."""
    limit = int(WIDEST_GUTTER * len(levels))
    floor = levels[division.end : division.start].max() + CLEAN
    for start, end in ((0, division.end), (division.start, len(levels))):
        for line in range(start + limit, end - limit):
            around = min(levels[line - limit : line].max(), levels[line + 1 : line + limit + 1].max())
            if levels[line] <= floor and around > VISIBLE and levels[line] < CLEANER * around:
                raise NotDivided(f"a second gutter at {line / len(levels):.2f} of the side")


def _jumps(values: Values, scale: int) -> Values:
    """Return the colour difference between the `scale` pixels before each line and those from it on, [n, m]."""
    sums = np.concatenate([np.zeros_like(values[:1]), np.cumsum(values, axis=0, dtype=np.float64)])
    means = (sums[scale:] - sums[:-scale]) / scale
    jumps = np.zeros(values.shape[:2])
    jumps[scale : len(values) - scale + 1] = np.abs(means[scale:] - means[:-scale]).mean(axis=-1)
    return jumps


def _around(line: int, jumps: Values, scale: int) -> NDArray[np.intp]:
    """Return the lines around one, without its neighbours."""
    count = jumps.shape[1]
    reach = max(6 * scale, int(0.04 * count))
    lines = np.concatenate([np.arange(line - reach, line - scale), np.arange(line + scale + 1, line + reach + 1)])
    return lines[(lines >= 0) & (lines < count)]


def _shown(jumps: Values, line: int, scale: int) -> NDArray[np.bool_]:
    """Return which segments of a line [2, SEGMENTS] differ across it by more than the lines around do."""
    typical = np.median(jumps[:, _around(line, jumps, scale)], axis=1)
    return np.asarray((jumps[:, line] > OVER_SURROUNDINGS * typical) & (jumps[:, line] > JUMP))


def _require_no_finer(jumps: Values, scale: int) -> None:
    """Require that no lines at the thirds or quarters show as seams."""
    count = jumps.shape[1]
    reach = round(UNEQUAL / 2 * count)
    for panels in (3, 4):
        places = (round(count / panels), round(count - count / panels))
        shown = [
            # Of four panels the seam in the middle is one; of three it would be chance, so that all halves must show theirs.
            max(
                float(parts.mean() if panels == 4 else parts.mean(axis=-1).min())
                for parts in (_shown(jumps, line, scale) for line in range(place - reach, place + reach + 1))
            )
            for place in places
        ]
        if min(shown) > FINER:
            raise NotDivided(f"{panels} panels")


def _beside_gutter(values: Values, jumps: Values, seam: int, scale: int) -> bool:
    """Return whether a band of one colour between the seam and a line like it crosses both halves: it is a gutter's edge."""
    enough = RIVAL * _shown(jumps, seam, scale).mean(axis=-1).min()
    difference = jumps[:, seam].mean(axis=-1)
    for width in range(2 * scale, round(WIDEST_GUTTER * len(values)) + 1):
        for line in (seam - width, seam + width):
            if _shown(jumps, line, scale).mean(axis=-1).min() < enough:
                continue
            band = values[min(line, seam) : max(line, seam)]
            parts = _halves(_deviation(band, np.median(band, axis=(0, 1)))).mean(axis=1)
            if (parts.mean(axis=-1) < CLEANER / 2 * difference).all():
                return True
    return False
