"""Relighting pairs: one scene under two lights; the caption describes the new light and nothing of the scene."""

from __future__ import annotations

import numpy as np

from datamodules.base import PairData
from datamodules.sources.miniature import scene_pair
from dsd_lightning.miniature.captions import relighting_caption
from dsd_lightning.miniature.world import Identity, Scene, change_light, draw_context
from dsd_lightning.pairs import Pair


class RelightingPairs(PairData):
    """A structure-preserving edit (paper, Fig. 5 and 14): direction or colour of the light change, or both.

    Reference and target show the same pixels. Only the reference shows the scene, only the caption describes the new light.
    """

    def miniature_pair(self, identity: Identity, rng: np.random.Generator, key: str) -> Pair:
        """Draw a context, and one of the 14 other lights for it."""
        context = draw_context(rng)
        relit = change_light(context, rng)
        return scene_pair(key, Scene(identity, context), Scene(identity, relit), relighting_caption(relit, rng), rng)
