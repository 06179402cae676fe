"""Measures how many grids of each kind are split rightly, refused, or cut wrongly.

python -m benchmarks.grid_splitting --grids 200 --seed 1

Grids of four photographs (pieces of scikit-image's) are laid out as teachers generate them, or as they should not: soft
gutters after JPEG, labels in the gutter, borders up to 15% of the side, white objects on white. A cut is right if each box
lies within its panel, but for 1.5% of the side, and holds at least 90% of it; every other cut is wrong. The last kinds are no
grids of two by two, and every cut of them is wrong. About 0.04 seconds a grid.
"""

from __future__ import annotations

import argparse
import io
import sys
from collections import Counter
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter, ImageFont
from skimage import data

from dsd_lightning.cli.flags import Flags, whole
from dsd_lightning.distillation.panels import Box, NotTwoByTwo, find_panels

SIDE = 256
"""Of a grid, pixels."""

OUTSIDE, WITHIN = 0.015, 0.9
"""Share of the side by which a box may leave its panel, and least share of the panel that it must hold."""

Grid = tuple[Image.Image, list[Box]]
"""A grid and its panels, row by row; [] where it is none of two by two."""

PHOTOGRAPHS = [Image.fromarray(read()) for read in (data.astronaut, data.coffee, data.chelsea, data.rocket)]


def piece(rng: np.random.Generator, width: int, height: int) -> Image.Image:
    """Return a random piece of a photograph, resized."""
    photograph = PHOTOGRAPHS[rng.integers(len(PHOTOGRAPHS))]
    side = int(rng.integers(150, min(photograph.size)))
    left, top = (int(rng.integers(0, whole_side - side + 1)) for whole_side in photograph.size)
    return photograph.crop((left, top, left + side, top + side)).resize((width, height))


def white_object(rng: np.random.Generator, width: int, height: int) -> Image.Image:
    """Return a pale object on white."""
    image = Image.new("RGB", (width, height), (255, 255, 255))
    x, y, radius = width * rng.uniform(0.35, 0.65), height * rng.uniform(0.35, 0.65), width * rng.uniform(0.15, 0.3)
    shade = int(rng.integers(200, 245))
    ImageDraw.Draw(image).ellipse((x - radius, y - radius, x + radius, y + radius), fill=(shade, shade, shade))
    return image


def laid_out(
    rng: np.random.Generator,
    gutter: int = 0,
    border: int = 0,
    color: tuple[int, int, int] = (255, 255, 255),
    panel: Callable[[np.random.Generator, int, int], Image.Image] = piece,
) -> Grid:
    """Return four panels with a gutter between and a border around them, pixels."""
    size = (SIDE - 2 * border - gutter) // 2
    grid = Image.new("RGB", (2 * size + 2 * border + gutter,) * 2, color)
    boxes = []
    for top in (border, border + size + gutter):
        for left in (border, border + size + gutter):
            grid.paste(panel(rng, size, size), (left, top))
            boxes.append(Box(left, top, left + size, top + size))
    return grid, boxes


def jpeg(image: Image.Image, quality: int) -> Image.Image:
    """Return an image as a JPEG of `quality` shows it."""
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality)
    return Image.open(buffer).convert("RGB")


def _gutter(rng: np.random.Generator) -> int:
    return int(rng.integers(4, 14))


def _shade(rng: np.random.Generator) -> tuple[int, int, int]:
    return ((255, 255, 255), (0, 0, 0), (128, 128, 128))[rng.integers(3)]


def _compressed(rng: np.random.Generator) -> Grid:
    grid, boxes = laid_out(rng)
    return jpeg(grid, int(rng.integers(50, 90))), boxes


def _soft(rng: np.random.Generator) -> Grid:
    grid, boxes = laid_out(rng, _gutter(rng), color=_shade(rng))
    return jpeg(grid.filter(ImageFilter.GaussianBlur(rng.uniform(0.5, 1.5))), int(rng.integers(50, 90))), boxes


def _labelled(rng: np.random.Generator) -> Grid:
    gutter = int(rng.integers(12, 20))
    grid, boxes = laid_out(rng, gutter)
    pen = ImageDraw.Draw(grid)
    for box in boxes[:2]:
        pen.text((box.left + 8, box.bottom), "panel", fill=(0, 0, 0), font=ImageFont.load_default(gutter - 3))
    return jpeg(grid, 85), boxes


def _framed(rng: np.random.Generator) -> Grid:
    """Return a grid whose border has another width on each side, as a JPEG."""
    grid, boxes = laid_out(rng, _gutter(rng), color=(color := _shade(rng)))
    left, top, right, bottom = (int(width) for width in rng.integers(0, int(0.15 * SIDE), 4))
    framed = Image.new("RGB", (grid.width + left + right, grid.height + top + bottom), color)
    framed.paste(grid, (left, top))
    moved = [Box(box.left + left, box.top + top, box.right + left, box.bottom + top) for box in boxes]
    return jpeg(framed, int(rng.integers(50, 90))), moved


def _uneven(rng: np.random.Generator) -> Grid:
    """Return four panels that meet away from the middle, with and without a gutter."""
    gutter = int(rng.choice([0, 6]))
    x, y = (int(SIDE * share) for share in rng.uniform(0.3, 0.7, 2))
    grid, boxes = Image.new("RGB", (SIDE, SIDE), _shade(rng)), []
    for top, bottom in ((0, y), (y + gutter, SIDE)):
        for left, right in ((0, x), (x + gutter, SIDE)):
            grid.paste(piece(rng, right - left, bottom - top), (left, top))
            boxes.append(Box(left, top, right, bottom))
    return grid, boxes


def _many(rng: np.random.Generator, rows: int, columns: int, gutter: int) -> Grid:
    """Return rows and columns of panels with a gutter between."""
    width, height = (SIDE - (columns - 1) * gutter) // columns, (SIDE - (rows - 1) * gutter) // rows
    size = columns * width + (columns - 1) * gutter, rows * height + (rows - 1) * gutter
    grid = Image.new("RGB", size, _shade(rng))
    for row in range(rows):
        for column in range(columns):
            grid.paste(piece(rng, width, height), (column * (width + gutter), row * (height + gutter)))
    return grid, []


def _columns(rng: np.random.Generator, count: int) -> Grid:
    width = SIDE // count
    grid = Image.new("RGB", (width * count, SIDE))
    for column in range(count):
        for row in range(2):
            grid.paste(piece(rng, width, SIDE // 2), (column * width, row * SIDE // 2))
    return grid, []


def _wide(rng: np.random.Generator, gutter: int = 8) -> Grid:
    grid, _ = laid_out(rng, gutter)
    grid.paste(piece(rng, SIDE, (SIDE - gutter) // 2), (0, 0))
    return grid, []


KINDS: dict[str, Callable[[np.random.Generator], Grid]] = {
    "seams alone": laid_out,
    "seams alone, after JPEG": _compressed,
    "gutters": lambda rng: laid_out(rng, _gutter(rng), color=_shade(rng)),
    "soft gutters, after JPEG": _soft,
    "labels in the gutter": _labelled,
    "gutters and borders up to 15%": lambda rng: laid_out(rng, _gutter(rng), int(rng.integers(1, int(0.15 * SIDE)))),
    "white objects on white": lambda rng: laid_out(rng, _gutter(rng), panel=white_object),
    "borders, each side another, after JPEG": _framed,
    "panels of unequal sizes": _uneven,
    "no grid: one photograph": lambda rng: (piece(rng, SIDE, SIDE), []),
    "no grid: three columns": lambda rng: _columns(rng, 3),
    "no grid: one above two": _wide,
    "no grid: one above two, seams alone": lambda rng: _wide(rng, 0),
    "no grid: two columns": lambda rng: _many(rng, 1, 2, int(rng.choice([0, 8]))),
    "no grid: four columns": lambda rng: _many(rng, 2, 4, int(rng.choice([0, 8]))),
    "no grid: three by three": lambda rng: _many(rng, 3, 3, int(rng.choice([0, 8]))),
    "no grid: four by four": lambda rng: _many(rng, 4, 4, int(rng.choice([0, 8]))),
}


LEAST_RIGHT = {
    "seams alone": 0.75,
    "seams alone, after JPEG": 0.75,
    "gutters": 0.95,
    "soft gutters, after JPEG": 0.9,
    "labels in the gutter": 0.75,
    "gutters and borders up to 15%": 0.95,
    "borders, each side another, after JPEG": 0.85,
}
"""Least share of right cuts; of all other kinds only that none is wrong."""


def outcome(image: Image.Image, panels: list[Box]) -> str:
    """Return "right", "refused" or "wrong" for a grid with these panels."""
    values: NDArray[np.uint8] = np.asarray(image)
    try:
        boxes = find_panels(values)
    except NotTwoByTwo:
        return "refused"
    return "right" if panels and all(map(_fits, boxes, panels)) else "wrong"


def _fits(box: Box, panel: Box) -> bool:
    slack = OUTSIDE * SIDE
    inside = (
        box.left >= panel.left - slack
        and box.top >= panel.top - slack
        and box.right <= panel.right + slack
        and box.bottom <= panel.bottom + slack
    )
    shared = (min(box.right, panel.right) - max(box.left, panel.left)) * (
        min(box.bottom, panel.bottom) - max(box.top, panel.top)
    )
    return inside and shared >= WITHIN * (panel.right - panel.left) * (panel.bottom - panel.top)


def grid_of(kind: str, index: int, seed: int) -> Grid:
    """Return one grid of a kind."""
    return KINDS[kind](np.random.default_rng([index, seed, *kind.encode()] if seed else [index, *kind.encode()]))


def measure(kind: str, count: int, seed: int = 0) -> Counter[str]:
    """Return how many of `count` grids of a kind have each outcome."""
    return Counter(outcome(*grid_of(kind, index, seed)) for index in range(count))


def main() -> None:
    """Print the table."""
    parser = Flags(
        prog="python -m benchmarks.grid_splitting",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--grids", type=whole(1), default=200, help="of each kind")
    parser.add_argument("--seed", type=whole(0), default=0, help="of the grids; the thresholds were set on seed 0")
    given = parser.parse_args()
    sys.stdout.write(f"| kind | right | refused | wrong, of {given.grids} |\n|---|---|---|---|\n")
    for kind in KINDS:
        outcomes = measure(kind, given.grids, given.seed)
        sys.stdout.write(f"| {kind} | {outcomes['right']} | {outcomes['refused']} | {outcomes['wrong']} |\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
