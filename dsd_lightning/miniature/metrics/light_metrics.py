"""Scores the light of a generated scene: the nearest of its renderings under all 15 lights gives direction and colour.

All else is as in the truth: who, where, background and style. Both attributes are searched together, so that a wrong colour
does not disturb the direction. The distance is that of `candidates`.

Measured on 256 true held-out images: untouched, through the miniature's VAE, with noise of deviation 0.4 or moved by a pixel
1.00 of the directions and of the colours; with 0.8 of the contrast 1.00 and 0.98. The scene under its old light, copied from
the reference, scores 0.11 and 0.28 (2 in 14 and 4 in 14 are expected: as often as the new light shares one of the two), a grey
image 0.15 and 0.34.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from dsd_lightning.miniature import candidates
from dsd_lightning.miniature.metrics.identity_metrics import Facts, MiniatureMetric, features, target_scene
from dsd_lightning.miniature.world import Scene, lights
from dsd_lightning.pairs import TARGET, PairBatch


class _LightAccuracy(MiniatureMetric):
    """Share of images that show one attribute of the light right; in [0, 1], higher is better."""

    higher_is_better = True
    is_differentiable = False
    full_state_update = False
    attribute: ClassVar[str]
    correct: Tensor
    total: Tensor

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.add_state("correct", torch.zeros((), dtype=torch.long), dist_reduce_fx="sum")
        self.add_state("total", torch.zeros((), dtype=torch.long), dist_reduce_fx="sum")

    def update(self, images: Float[Tensor, "b 3 h w"], facts: Sequence[Facts]) -> None:
        """Count hits among drawn targets [b, 3, 64, 64] in [-1, 1], given the facts that tell their scenes.

        Raises:
            ValueError: images of another size than the world's.
        """
        for drawn, fact in zip(features(images), facts, strict=True):
            scene = target_scene(fact)
            options = lights(scene.context)
            renderings = np.stack([candidates.rendered(Scene(scene.identity, option)) for option in options])
            nearest = options[int(np.argmin(candidates.distances(drawn, renderings)))]
            self.correct += getattr(nearest, self.attribute) == getattr(scene.context, self.attribute)
            self.total += 1

    def score(self, drawn: Mapping[str, Tensor], batch: PairBatch) -> None:
        """Count hits among the drawn targets."""
        self.update(drawn[TARGET], batch.facts)

    def compute(self) -> Tensor:
        """Return the share of hits; NaN before the first image."""
        return self.correct / self.total


class LightDirectionAccuracy(_LightAccuracy):
    """Whether the light comes from where it was asked for; chance 1 in 5."""

    attribute = "light_direction"


class LightColorAccuracy(_LightAccuracy):
    """Whether the light has the colour that was asked for; chance 1 in 3."""

    attribute = "light_color"
