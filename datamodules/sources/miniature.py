"""The embedded source: pairs of the miniature world, sampled by number and encoded once into a pool."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch.utils.data import Dataset

from datamodules.base import PairData
from datamodules.sources.pool import EncodedPool, ImagePairs, Pairs
from datamodules.stream import Size
from dsd_lightning.miniature.captions import instruction
from dsd_lightning.miniature.renderer import RESOLUTION, Rendering, render
from dsd_lightning.miniature.world import Scene, draw_identity
from dsd_lightning.pairs import Pair
from dsd_lightning.randomness import numpy_generator


def to_pixels(rendering: Rendering) -> Float[Tensor, "3 h w"]:
    """Return a rendered image as pixels in [-1, 1]."""
    return torch.from_numpy(rendering.image).permute(2, 0, 1).contiguous() * 2 - 1


def scene_pair(key: str, reference: Scene, target: Scene, caption: str, rng: np.random.Generator) -> Pair:
    """Return the images of two scenes of one identity as a pair, with an instruction that turns one into the other."""
    return Pair(
        key=key,
        reference=to_pixels(render(reference)),
        target=to_pixels(render(target)),
        caption=caption,
        instruction=instruction(reference.context, target.context, rng),
        facts={
            "identity": list(target.identity.values()),
            "reference": list(reference.context.values()),
            "target": list(target.context.values()),
        },
    )


class MiniaturePairs(Dataset[Pair]):
    """`count` pairs of a task; pair i depends on (seed, task, split, i) alone, and on `identities`.

    Args:
        data: the task's datamodule.
        count, seed: number of pairs, and seed of their draws.
        split: "training", or another, whose identities are held out.
        identities: pairs show this many draws of an identity in turn; None: each pair one of its own.

    Raises:
        ValueError: `identities` below 1.
    """

    def __init__(self, data: PairData, count: int, seed: int, split: str, identities: int | None = None) -> None:
        if identities is not None and identities < 1:
            raise ValueError(f"identities={identities} must be at least 1, or null for one of its own in each pair")
        self.data, self.count, self.seed, self.split, self.identities = data, count, seed, split, identities

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Pair:
        if not 0 <= index < self.count:
            raise IndexError(index)
        key = f"{self.data.task.name}-{self.split}-{index:07d}"
        rng = numpy_generator(self.seed, "miniature", key)
        who = rng
        if self.identities is not None:
            who = numpy_generator(self.seed, "miniature identity", self.split, index % self.identities)
        return self.data.miniature_pair(draw_identity(who, held_out=self.split != "training"), rng, key)


@dataclass
class Miniature:
    """Pairs of the miniature world.

    Attributes:
        pairs: training pairs in the pool; validation_pairs: held-out ones.
        seed: of the pairs, apart from the run's seed, so that runs with other seeds use the same data.
        identities: draws of an identity that the training pairs share in turn; None: each pair one of its own.
        pool: encode once and keep in memory; false renders and encodes in every step.
        workers, max_damaged: as in `datamodules.base.Source`.
    """

    pairs: int
    validation_pairs: int
    seed: int = 0
    identities: int | None = None
    pool: bool = True
    workers: int = 0
    max_damaged: int = 0
    resolution: Size = (RESOLUTION, RESOLUTION)
    buckets: None = None

    @property
    def encodes(self) -> bool:
        """Whether a pool is filled."""
        return self.pool

    def __post_init__(self) -> None:
        self.resolution = (int(self.resolution[0]), int(self.resolution[1]))
        if self.resolution != (RESOLUTION, RESOLUTION):
            raise ValueError(
                f"data.datamodule.source.resolution={list(self.resolution)}: the miniature world is rendered at {RESOLUTION} x "
                f"{RESOLUTION} only; use data=shards for images of other sizes"
            )
        if self.pairs < 1 or self.validation_pairs < 0:
            raise ValueError(
                f"data.datamodule.source.pairs={self.pairs} must be at least 1, validation_pairs={self.validation_pairs} "
                "at least 0"
            )
        if self.pool and self.workers:
            raise ValueError(
                f"data.datamodule.source.workers={self.workers}: a pool in memory needs none; set 0, or pool=false beside it"
            )

    def training(self, data: PairData) -> Any:
        """Return the training pairs, as a pool of encodings or as images."""
        return self._dataset(data, MiniaturePairs(data, self.pairs, self.seed, "training", self.identities))

    def validation(self, data: PairData) -> Any:
        """Return pairs of held-out identities."""
        return self._dataset(data, MiniaturePairs(data, self.validation_pairs, self.seed, "validation"))

    def probes(self, data: PairData, count: int) -> Pairs | None:
        """Return other pairs of held-out identities, with images and facts."""
        return MiniaturePairs(data, count, self.seed, "probe")

    def _dataset(self, data: PairData, pairs: Pairs) -> Any:
        if not self.pool:
            return ImagePairs(pairs, data.task, data.seed)
        return EncodedPool(pairs, data.trained_module(), data.task, data.seed)
