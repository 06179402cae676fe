"""Images that the tiny base is pretrained on: text to image, no reference.

Single images (64 x 64), two panels side by side (64 x 128) and 2 x 2 grids (128 x 128), all panels of one image showing one
character in contexts of their own. Most captions do not name the subject, and those of several panels leave panels out (of
two, the left one always), so that the panels have to agree by themselves. Training identities only.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from einops import rearrange
from torch.utils.data import Dataset

from datamodules.base import PairData
from datamodules.sources.miniature import to_pixels
from datamodules.sources.pool import EncodedPool, Pairs
from datamodules.stream import Size
from dsd_lightning.miniature.captions import full_caption, grid_caption, target_caption
from dsd_lightning.miniature.renderer import RESOLUTION, render
from dsd_lightning.miniature.world import Context, Identity, Scene, draw_context, draw_identity, share_light_and_style
from dsd_lightning.module import DiffusionSelfDistillation
from dsd_lightning.pairs import Pair
from dsd_lightning.randomness import numpy_generator

KINDS = {"singles": (1, 1), "two_panels": (1, 2), "grids": (2, 2)}
"""Rows and columns of panels of each kind of image."""


class PretrainingImages(PairData):
    """The datamodule of `task=text_to_image`."""


class _Images(Dataset[Pair]):
    """`counts[kind]` images of each kind; image i of a kind depends on (seed, kind, split, i) alone, and on the shares."""

    def __init__(
        self, counts: Mapping[str, int], unnamed: Mapping[str, float], partly_described: float, seed: int, split: str
    ) -> None:
        self.images = [(kind, index) for kind in KINDS for index in range(counts[kind])]
        self.unnamed, self.partly_described, self.seed, self.split = unnamed, partly_described, seed, split

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Pair:
        kind, number = self.images[index]
        key = f"text_to_image-{self.split}-{kind}-{number:07d}"
        rng = numpy_generator(self.seed, "pretraining", key)
        identity, first = draw_identity(rng, held_out=False), draw_context(rng)
        rows, columns = KINDS[kind]
        contexts = [first, *(draw_context(rng) for _ in range(rows * columns - 1))]
        if kind == "grids":
            contexts = [share_light_and_style(context, first) for context in contexts]
        panels = torch.stack([to_pixels(render(Scene(identity, context))) for context in contexts])
        image = rearrange(panels, "(r c) d h w -> d (r h) (c w)", r=rows, c=columns)
        return Pair(key, None, image, self._caption(kind, identity, contexts, rng))

    def _caption(self, kind: str, identity: Identity, contexts: list[Context], rng: np.random.Generator) -> str:
        """Return the words of an image; of single images and of two panels they describe the last panel."""
        named = rng.random() >= self.unnamed[kind]
        if kind != "grids":
            return full_caption(Scene(identity, contexts[-1]), rng) if named else target_caption(contexts[-1], rng)
        described = [True] * len(contexts)
        if rng.random() < self.partly_described:
            described = [bool(rng.random() < 0.5) for _ in contexts]
        return grid_caption(identity if named else None, contexts, rng, described)


@dataclass
class MiniatureImages:
    """The source of `data=pretraining`: a pool of encoded single images, images of two panels, and grids.

    Attributes:
        singles, two_panels, grids: images of each kind in the pool.
        unnamed: by kind, the share of captions that do not name the subject, in [0, 1].
        partly_described: share of grids whose captions leave out each panel with odds of one half, in [0, 1].
        validation_images: images of each kind that are not trained on; of kinds without a training image there are none.
        seed: of the images.
        grid_text_length: T5 tokens of a grid caption.
    """

    singles: int
    two_panels: int
    grids: int
    unnamed: Mapping[str, float]
    partly_described: float
    validation_images: int
    seed: int
    grid_text_length: int
    workers: int = 0
    max_damaged: int = 0
    resolution: Size = (RESOLUTION, RESOLUTION)
    buckets: None = None
    encodes: bool = True

    @property
    def counts(self) -> dict[str, int]:
        """Training images of each kind."""
        return {"singles": self.singles, "two_panels": self.two_panels, "grids": self.grids}

    def training(self, data: PairData) -> Any:
        """Return the pool."""
        return self._pool(data, self.counts, "training")

    def validation(self, data: PairData) -> Any:
        """Return a small pool of other images."""
        counts = {kind: self.validation_images if count else 0 for kind, count in self.counts.items()}
        return self._pool(data, counts, "validation")

    def probes(self, data: PairData, count: int) -> Pairs | None:
        """Return nothing: an image without a reference has no pair to compare with."""
        return None

    def _pool(self, data: PairData, counts: Mapping[str, int], split: str) -> EncodedPool:
        module = data.trainer.lightning_module if data.trainer is not None else None
        assert isinstance(module, DiffusionSelfDistillation)
        images = _Images(counts, self.unnamed, self.partly_described, self.seed, split)
        lengths = {(2 * RESOLUTION, 2 * RESOLUTION): self.grid_text_length}
        return EncodedPool(images, module, data.task, data.seed, lengths)
