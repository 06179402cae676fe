"""Images and grids that the tiny base is pretrained on: text to image, no reference.

Single images (64 x 64) under full captions, and 2 x 2 grids (128 x 128) of one character in four contexts. The captions of half
of the grids do not name the character, so that consistency has to come from the panels themselves. Training identities
only; every grid is consistent.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from einops import rearrange
from torch.utils.data import Dataset

from datamodules.base import PairData
from datamodules.sources.miniature import to_pixels
from datamodules.sources.pool import EncodedPool, Pairs
from datamodules.stream import Size
from dsd_lightning.miniature.captions import full_caption, grid_caption
from dsd_lightning.miniature.renderer import RESOLUTION, render
from dsd_lightning.miniature.world import Scene, draw_context, draw_identity, share_light_and_style
from dsd_lightning.module import DiffusionSelfDistillation
from dsd_lightning.pairs import Pair
from dsd_lightning.randomness import numpy_generator


class PretrainingImages(PairData):
    """The datamodule of `task=text_to_image`."""


class _Images(Dataset[Pair]):
    def __init__(self, singles: int, grids: int, unnamed: float, seed: int, split: str) -> None:
        self.singles, self.grids, self.unnamed, self.seed, self.split = singles, grids, unnamed, seed, split

    def __len__(self) -> int:
        return self.singles + self.grids

    def __getitem__(self, index: int) -> Pair:
        key = f"text_to_image-{self.split}-{index:07d}"
        rng = numpy_generator(self.seed, "pretraining", key)
        identity = draw_identity(rng, held_out=False)
        if index < self.singles:
            scene = Scene(identity, draw_context(rng))
            return Pair(key, None, to_pixels(render(scene)), full_caption(scene, rng))
        first = draw_context(rng)
        contexts = [first] + [share_light_and_style(draw_context(rng), first) for _ in range(3)]
        panels = torch.stack([to_pixels(render(Scene(identity, context))) for context in contexts])
        grid = rearrange(panels, "(r c) d h w -> d (r h) (c w)", r=2, c=2)
        named = identity if rng.random() >= self.unnamed else None
        return Pair(key, None, grid, grid_caption(named, contexts, rng))


@dataclass
class MiniatureImages:
    """The source of `data=pretraining`: a pool of encoded single images and grids.

    Attributes:
        singles, grids: images of each kind in the pool.
        unnamed: share of grids whose caption does not name the subject.
        validation_images: images of each kind that are not trained on.
        seed: of the images.
        grid_text_length: T5 tokens of a grid caption.
    """

    singles: int
    grids: int
    unnamed: float
    validation_images: int
    seed: int
    grid_text_length: int
    workers: int = 0
    max_damaged: int = 0
    resolution: Size = (RESOLUTION, RESOLUTION)
    buckets: None = None
    encodes: bool = True

    def training(self, data: PairData) -> Any:
        """Return the pool."""
        return self._pool(data, self.singles, self.grids, "training")

    def validation(self, data: PairData) -> Any:
        """Return a small pool of other images."""
        return self._pool(data, self.validation_images, self.validation_images, "validation")

    def probes(self, data: PairData, count: int) -> Pairs | None:
        """Return nothing: an image without a reference has no pair to compare with."""
        return None

    def _pool(self, data: PairData, singles: int, grids: int, split: str) -> EncodedPool:
        module = data.trainer.lightning_module if data.trainer is not None else None
        assert isinstance(module, DiffusionSelfDistillation)
        images = _Images(singles, grids, self.unnamed, self.seed, split)
        lengths = {(2 * RESOLUTION, 2 * RESOLUTION): self.grid_text_length}
        return EncodedPool(images, module, data.task, data.seed, lengths)
