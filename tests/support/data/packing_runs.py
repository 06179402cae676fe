"""Photographs, and their bytes and pixels, for tests of packing."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image
from skimage import data

PHOTOGRAPHS = [Image.fromarray(read()[:120, :140]) for read in (data.astronaut, data.coffee, data.chelsea)]


NAMES = ["astronaut", "coffee", "cat"]


def png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def pixels(image: Image.Image | None) -> np.ndarray:
    return np.asarray(image)
