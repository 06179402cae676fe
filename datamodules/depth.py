"""Depth pairs: a depth map and the image it belongs to; the caption describes what the map cannot show."""

from __future__ import annotations

import numpy as np
import torch

from datamodules.base import PairData
from datamodules.sources.miniature import to_pixels
from dsd_lightning.miniature.captions import depth_caption
from dsd_lightning.miniature.renderer import render
from dsd_lightning.miniature.world import Identity, Scene, draw_context
from dsd_lightning.pairs import Pair


class DepthPairs(PairData):
    """Structure-conditioned generation, as ControlNet does it (paper, Sec. 4.3 and Fig. 6, right).

    The text describes the image, the depth map gives its geometry: on the miniature the caption describes the
    subject, the background, the light and the style, and leaves size, place and rotation to the depth map. Reference and
    target show the same pixels.
    """

    def miniature_pair(self, identity: Identity, rng: np.random.Generator, key: str) -> Pair:
        """Draw a context, and the true depth of the scene."""
        scene = Scene(identity, draw_context(rng))
        rendering = render(scene)
        return Pair(
            key=key,
            reference=torch.from_numpy(rendering.depth_map).permute(2, 0, 1).contiguous() * 2 - 1,
            target=to_pixels(rendering),
            caption=depth_caption(scene, rng),
            facts={
                "identity": list(scene.identity.values()),
                "reference": list(scene.context.values()),
                "target": list(scene.context.values()),
            },
        )
