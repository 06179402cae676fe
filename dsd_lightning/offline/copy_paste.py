"""A stand-in for a model that only copies: the reference's character unchanged, on the requested background.

It stands for methods that paste the reference's pixels into a new image, as the paper says of IP-Adapter+. It knows the
miniature world's silhouettes and nothing of the character.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image

from dsd_lightning.evaluation.samples.benchmark import Case
from dsd_lightning.miniature import geometry
from dsd_lightning.miniature.renderer import RESOLUTION
from dsd_lightning.miniature.world import BACKGROUND_PALETTE
from dsd_lightning.offline.score_judge.judge import requested
from dsd_lightning.offline.score_judge.scene import as_pixels


class CopyPaste:
    """Cuts the character out of the reference and puts it, where it was, on a plain background of the requested colour."""

    def described(self) -> dict[str, Any]:
        """Return its name, which alone determines its images."""
        return {"model": "copy-paste"}

    def generate(self, cases: Sequence[Case], references: Sequence[Image.Image], seed: int) -> list[Image.Image]:
        """Return an image a case; nothing is random."""
        silhouettes = geometry.silhouettes()
        palette = list(BACKGROUND_PALETTE.values())
        images = []
        for case, reference in zip(cases, references, strict=True):
            pixels = as_pixels(reference)
            mask = silhouettes.masks[geometry.infer_silhouettes(pixels[None])[0]].reshape(RESOLUTION, RESOLUTION, 1)
            color = palette[requested(case.prompt.text).get("background_color", 0)]
            values = np.where(mask, (pixels.transpose(1, 2, 0) + 1) / 2, np.asarray(color, dtype=np.float32))
            images.append(Image.fromarray(np.round(np.clip(values, 0, 1) * 255).astype(np.uint8)))
        return images
