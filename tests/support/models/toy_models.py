"""Architectures whose velocity can be written down, and a random vision tower."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import CLIPImageProcessor, CLIPVisionConfig, CLIPVisionModelWithProjection

from dsd_lightning.architectures.base import State
from dsd_lightning.architectures.parallel import Parallel
from dsd_lightning.architectures.text_only import TextOnly
from dsd_lightning.flux.image_encoder import ImageEncoder, Preprocessing
from dsd_lightning.pairs import Condition, TextEmbeddings

Field = Callable[[Tensor, Tensor, Condition], Tensor]
"""A velocity: (noisy canvas, timesteps, condition) -> canvas."""


class _Toy:
    """Computes a given field, and notes for each evaluation whether it saw the text and the reference."""

    def _set(self, field: Field) -> None:
        self.field, self.evaluations, self.preparations = field, [], 0

    def prepare(self, condition: Condition) -> State:
        self.preparations += 1
        return {}

    def null_reference(self, reference: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        return {name: torch.zeros_like(value) for name, value in reference.items()}

    def forward(self, noisy: Tensor, timestep: Tensor, condition: Condition, state: State | None = None) -> Tensor:
        reference = condition.reference.get("canvas")
        self.evaluations.append(
            (float(timestep[0]), bool(condition.text.sequence.any()), reference is not None and bool(reference.any()))
        )
        return self.field(noisy, timestep, condition)


class ToyTwoFrames(_Toy, Parallel):
    """Frames as those of `parallel`; no transformer."""

    def __init__(self, field: Field) -> None:
        nn.Module.__init__(self)
        self._set(field)


class ToyOneFrame(_Toy, TextOnly):
    """The target alone; no transformer."""

    def __init__(self, field: Field) -> None:
        nn.Module.__init__(self)
        self._set(field)


def text_of(value: float, batch: int = 2) -> TextEmbeddings:
    return TextEmbeddings(torch.full((batch, 3, 4), value), torch.full((batch, 4), value))


NULL_TEXT = text_of(0.0, batch=1)


def image_encoder(seed: int = 0) -> ImageEncoder:
    """Return a CLIP vision tower of two layers for images of 32 x 32; its weights are random, and those of the seed."""
    config = CLIPVisionConfig(
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=32,
        patch_size=8,
        projection_dim=24,
        initializer_range=0.2,
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        tower = CLIPVisionModelWithProjection(config)
    return ImageEncoder(tower, Preprocessing((32, 32), None, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5), "bicubic"))


def save_image_encoder(folder: Path) -> Path:
    """Return `folder`, with `image_encoder()` in the transformers layout in it."""
    image_encoder().tower.save_pretrained(folder)
    half = [0.5, 0.5, 0.5]
    size = {"height": 32, "width": 32}
    CLIPImageProcessor(size=size, do_center_crop=False, image_mean=half, image_std=half).save_pretrained(folder)
    return folder
