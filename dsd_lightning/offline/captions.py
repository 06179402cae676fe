"""Caption references of the miniature world, some of them without a subject."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from dsd_lightning.distillation.records import DistillationError
from dsd_lightning.miniature.captions import full_caption, surroundings
from dsd_lightning.miniature.world import Scene, draw_context, draw_identity
from dsd_lightning.randomness import numpy_generator


class MiniatureCaptions:
    """Captions of single images of training characters, as a base model might have been trained on.

    Args:
        count: captions before they are deduplicated and sampled.
        without_subject: share of captions of surroundings alone.
        seed: of all of them.

    Raises:
        DistillationError: a share outside [0, 1).
    """

    def __init__(self, count: int, without_subject: float, seed: int) -> None:
        if not 0 <= without_subject < 1:
            raise DistillationError(f"captions.without_subject={without_subject}: must be in [0, 1)")
        self.count, self.without_subject, self.seed = count, without_subject, seed

    def settings(self) -> Mapping[str, Any]:
        """Return what determines them."""
        return {"world": "miniature", "count": self.count, "none": self.without_subject, "seed": self.seed}

    def texts(self) -> Iterator[str]:
        """Yield the captions."""
        for index in range(self.count):
            rng = numpy_generator(self.seed, "caption reference", index)
            scene = Scene(draw_identity(rng, held_out=False), draw_context(rng))
            if rng.random() < self.without_subject:
                yield ", ".join(surroundings(scene.context)).removeprefix("on ")
            else:
                yield full_caption(scene, rng)
