"""Finds the miniature world's character in an image: the box of the silhouette that is read from the pixels."""

from __future__ import annotations

import numpy as np
from PIL import Image

from dsd_lightning.miniature import geometry
from dsd_lightning.miniature.renderer import RESOLUTION
from dsd_lightning.offline.score_judge.scene import as_pixels, scene_of


class MiniatureDetector:
    """The detector of ViStoryBench's measures for the miniature world, which shows one character at most."""

    name = "miniature silhouettes"

    def boxes(self, image: Image.Image) -> list[tuple[float, float, float, float]]:
        """Return the box of the character, pixels of the image; none if there is no character."""
        values = np.round((as_pixels(image).transpose(1, 2, 0) + 1) * 127.5).astype(np.uint8)
        scene = scene_of(values.tobytes())
        if scene is None:
            return []
        silhouettes = geometry.silhouettes()
        rows, columns = np.nonzero(silhouettes.masks[silhouettes.index(scene)].reshape(RESOLUTION, RESOLUTION))
        wide, high = image.width / RESOLUTION, image.height / RESOLUTION
        left, right, top, bottom = columns.min(), columns.max() + 1, rows.min(), rows.max() + 1
        return [(left * wide, top * high, right * wide, bottom * high)]
