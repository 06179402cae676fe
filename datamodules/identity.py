"""Identity pairs: one subject in two contexts; the caption tells the target's context, never who is in it."""

from __future__ import annotations

import numpy as np

from datamodules.base import PairData
from datamodules.miniature import to_pixels
from dsd_lightning.miniature.captions import instruction, target_caption
from dsd_lightning.miniature.renderer import render
from dsd_lightning.miniature.world import Scene, draw_context, draw_identity
from dsd_lightning.pairs import Pair


class IdentityPairs(PairData):
    """The task of the paper's main experiment."""

    def miniature_pair(self, rng: np.random.Generator, key: str, held_out: bool) -> Pair:
        """Draw one identity in two independent contexts."""
        identity = draw_identity(rng, held_out=held_out)
        reference, target = draw_context(rng), draw_context(rng)
        return Pair(
            key=key,
            reference=to_pixels(render(Scene(identity, reference))),
            target=to_pixels(render(Scene(identity, target))),
            caption=target_caption(target, rng),
            instruction=instruction(reference, target, rng),
            facts={
                "identity": list(identity.values()),
                "reference": list(reference.values()),
                "target": list(target.values()),
            },
        )
