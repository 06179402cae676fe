"""Identity pairs: one subject in two contexts; the caption describes the target's context, never the subject."""

from __future__ import annotations

import numpy as np

from datamodules.base import PairData
from datamodules.sources.miniature import scene_pair
from dsd_lightning.miniature.captions import target_caption
from dsd_lightning.miniature.world import Identity, Scene, draw_context
from dsd_lightning.pairs import Pair


class IdentityPairs(PairData):
    """The task of the paper's main experiment."""

    def miniature_pair(self, identity: Identity, rng: np.random.Generator, key: str) -> Pair:
        """Draw two independent contexts."""
        reference, target = draw_context(rng), draw_context(rng)
        return scene_pair(key, Scene(identity, reference), Scene(identity, target), target_caption(target, rng), rng)
