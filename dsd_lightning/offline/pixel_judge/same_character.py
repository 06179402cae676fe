"""Decides by pixels alone whether two small images show one character: cut out, aligned, and compared.

Nothing is assumed of the characters: a character is what differs in hue or brightness from the background that the
image's rim shows. One is turned, scaled and moved until it covers the other best; what then differs, as a whole and
where it differs most, is turned into a confidence.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Values = NDArray[np.floating[Any]]

SIDE = 48
"""Pixels of the square in which characters are laid over one another."""

SPREAD = 4.6
"""Side of that square in units of the square root of half the character's area."""

RIM = 3
"""Width of the rim that shows the background, pixels."""

HUE, BRIGHT = 0.10, 1.28
"""Distances from the background beyond which a pixel is the character's: of unit colour vectors, and of brightness (ratio)."""

ANGLES = np.deg2rad(np.arange(-60.0, 60.1, 7.5))
"""Turns that are tried, radians."""

SCALES = (0.92, 1.0, 1.09)
"""Ratios of size that are tried beyond the one that makes areas equal."""

OUTSIDE = 0.5
"""Difference that counts where only one character is."""

LUMINANCE_WEIGHT = 0.5
"""Weight of differences in brightness, which a turn under the same light changes too; of those in colour: 1."""


@dataclass(frozen=True)
class Character:
    """A character cut out of its image: colours [h, w, 3] and cover [h, w] in [0, 1], centre (x, y) and scale, pixels."""

    image: Image.Image
    cover: Image.Image
    center: tuple[float, float]
    scale: float


@dataclass(frozen=True)
class Likeness:
    """How two characters agree when one is laid over the other.

    Attributes:
        overlap: intersection over union of their covers, in [0, 1].
        mean: mean difference over the union; 0 is none, 0.3 is another colour.
        worst: the 95th percentile of the difference averaged over 5 x 5 pixels.
    """

    overlap: float
    mean: float
    worst: float


def cut_out(image: Image.Image) -> Character | None:
    """Return the character of an image; None where there is none, or nothing else."""
    values = np.asarray(image.convert("RGB"), dtype=np.float32) / 255
    height, width = values.shape[:2]
    rim = np.zeros((height, width), dtype=bool)
    rim[:RIM], rim[-RIM:], rim[:, :RIM], rim[:, -RIM:] = True, True, True, True
    length = np.linalg.norm(values, axis=-1)
    unit = values / np.maximum(length, 1e-3)[..., None]
    ground = np.median(unit[rim], axis=0)
    ground /= np.linalg.norm(ground)
    brightest = float(np.percentile(length[rim], 90))
    hue = np.linalg.norm(unit - ground, axis=-1)
    mask = (hue > HUE) | (length > BRIGHT * brightest) | (length < 0.28 * brightest)
    mask = _largest(_majority(mask))
    area = float(mask.sum())
    if not 0.02 * mask.size < area < 0.7 * mask.size:
        return None
    rows, columns = np.nonzero(mask)
    cover = Image.fromarray((mask * 255).astype(np.uint8))
    return Character(
        image.convert("RGB"), cover, (float(columns.mean()) + 0.5, float(rows.mean()) + 0.5), float(np.sqrt(area / 2))
    )


def _majority(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Return for each pixel whether most of its 3 x 3 neighbourhood is set."""
    return _boxed(mask.astype(np.float32), 3) > 0.5


def _boxed(values: Values, size: int) -> Values:
    """Return the mean over a box of `size` x `size` pixels around each; beyond the edge the edge's value counts."""
    reach = size // 2
    padded = np.pad(values, reach, mode="edge")
    total = sum(
        padded[dy : dy + values.shape[0], dx : dx + values.shape[1]] for dy in range(size) for dx in range(size)
    )
    return np.asarray(total / size**2, dtype=np.float32)


def _largest(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Return the largest connected part of a mask, with its holes filled."""
    best = np.zeros_like(mask)
    left = mask.copy()
    while left.any():
        part = _reached(left, tuple(int(i) for i in np.argwhere(left)[0]))  # type: ignore[arg-type]
        if part.sum() > best.sum():
            best = part
        left &= ~part
    framed = np.pad(~best, 1, constant_values=True)
    return ~_reached(framed, (0, 0))[1:-1, 1:-1]


def _reached(mask: NDArray[np.bool_], start: tuple[int, int]) -> NDArray[np.bool_]:
    """Return what can be reached from `start` within a mask, by steps to the four neighbours."""
    part = np.zeros_like(mask)
    part[start] = True
    while True:
        grown = part.copy()
        grown[1:] |= part[:-1]
        grown[:-1] |= part[1:]
        grown[:, 1:] |= part[:, :-1]
        grown[:, :-1] |= part[:, 1:]
        grown &= mask
        if grown.sum() == part.sum():
            return part
        part = grown


def _laid(character: Character, angle: float, scale: float, shift: tuple[float, float]) -> tuple[Values, Values]:
    """Return colours [s, s, 3] and cover [s, s] of a character, turned, scaled and moved (pixels) into the common square."""
    step = character.scale * scale * SPREAD / SIDE
    cosine, sine = np.cos(angle) * step, np.sin(angle) * step
    middle = SIDE / 2
    x = character.center[0] - cosine * (middle + shift[0]) + sine * (middle + shift[1])
    y = character.center[1] - sine * (middle + shift[0]) - cosine * (middle + shift[1])
    matrix = (cosine, -sine, x, sine, cosine, y)

    def warped(image: Image.Image) -> Values:
        moved = image.transform((SIDE, SIDE), Image.Transform.AFFINE, matrix, Image.Resampling.BILINEAR)
        return np.asarray(moved, dtype=np.float32) / 255

    return warped(character.image), warped(character.cover)


def _opponent(values: Values) -> Values:
    """Return colours as brightness, red against green, and yellow against blue, weighted."""
    red, green, blue = values[..., 0], values[..., 1], values[..., 2]
    return np.stack(
        [LUMINANCE_WEIGHT * values.mean(axis=-1), (red - green) / 1.4, (red + green - 2 * blue) / 2.4], axis=-1
    )


def _difference(one: tuple[Values, Values], other: tuple[Values, Values]) -> tuple[Values, Values, Values]:
    """Return difference, union and intersection [s, s] of two characters laid over one another."""
    both, either = np.minimum(one[1], other[1]), np.maximum(one[1], other[1])
    colors = np.linalg.norm(one[0] - other[0], axis=-1)
    return colors * both + OUTSIDE * (either - both), either, both


def compare(one: Character, other: Character) -> Likeness:
    """Return how two characters agree under the turn, scale and shift that makes them most alike."""
    colors, cover = _laid(one, 0.0, 1.0, (0.0, 0.0))
    fixed = (_opponent(colors), cover)

    def cost(angle: float, scale: float, shift: tuple[float, float]) -> float:
        colors, cover = _laid(other, angle, scale, shift)
        difference, either, _ = _difference(fixed, (_opponent(colors), cover))
        return float(difference.sum() / max(float(either.sum()), 1.0))

    place = (0.0, 1.0, (0.0, 0.0))
    best = cost(*place)
    for angle in ANGLES:
        for scale in SCALES:
            if (trial_cost := cost(angle, scale, (0.0, 0.0))) < best:
                best, place = trial_cost, (float(angle), scale, (0.0, 0.0))
    turn, grow, move = np.deg2rad(4.0), 0.05, 1.5
    for _ in range(4):
        angle, scale, (x, y) = place
        steps = [(angle + a, scale, (x, y)) for a in (-turn, turn)]
        steps += [(angle, scale * s, (x, y)) for s in (1 - grow, 1 + grow)]
        steps += [(angle, scale, (x + dx, y + dy)) for dx, dy in ((move, 0), (-move, 0), (0, move), (0, -move))]
        costs = [cost(*step) for step in steps]
        if min(costs) < best:
            best, place = min(costs), steps[int(np.argmin(costs))]
        else:
            turn, grow, move = turn / 2, grow / 2, move / 2
    colors, cover = _laid(other, *place)
    difference, either, both = _difference(fixed, (_opponent(colors), cover))
    inside = either > 0.5
    worst = float(np.percentile(_boxed(difference, 5)[inside], 95)) if inside.any() else 1.0
    return Likeness(float(both.sum() / max(float(either.sum()), 1.0)), best, worst)
