"""Images for requests that ask for one: grids of speckled panels, a pure function of a number."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image


def speckled_grid(height: int, width: int, seed: int, columns: int = 2) -> Image.Image:
    """Return two rows of panels of different colours, by the seed."""
    rng = np.random.default_rng(seed)
    colors = rng.permutation(np.linspace(30, 220, 2 * columns))[..., None] + rng.uniform(-15, 15, (2 * columns, 3))
    values = np.zeros((height, width, 3))
    for index, color in enumerate(colors):
        row, column = divmod(index, columns)
        down = slice(row * height // 2, (row + 1) * height // 2)
        across = slice(column * width // columns, (column + 1) * width // columns)
        values[down, across] = color
    values += rng.normal(0, 4, values.shape)
    return Image.fromarray(values.clip(0, 255).astype(np.uint8))


def png(image: Image.Image) -> bytes:
    """Return the image as a png."""
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()
