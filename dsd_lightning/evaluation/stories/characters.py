"""Measures the characters of a story as ViStoryBench does: how many are there, whether they are the same, whether copied.

A detector cuts characters out of shots and references. OCCM compares their number with the script's. CIDS matches them to the
script's characters by an encoder (published: CLIP ViT-L/14, and face recognition for realistic people) and compares them with
the references (cross) and with each other (self). The copy-paste rate is how much nearer they are to the first reference than
to its mirror image, by a softmax of temperature 0.01: 0.5 for images that do not repeat its pixels.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from PIL import Image, ImageOps
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from dsd_lightning.evaluation.similarity.encoders import Encoder
from dsd_lightning.evaluation.similarity.measures import mean_of_pairs
from dsd_lightning.evaluation.stories.dataset import Character, Story
from dsd_lightning.images.pixels import load_rgb

_EPSILON, _TEMPERATURE = 1e-6, 0.01


@runtime_checkable
class Detector(Protocol):
    """Finds characters in an image."""

    name: str
    """Folder or hub id of the weights."""

    def boxes(self, image: Image.Image) -> list[tuple[float, float, float, float]]:
        """Return left, top, right and bottom of each character, pixels, the most certain first."""
        ...


@dataclass(frozen=True)
class CharacterScores:
    """One story's; NaN where there is nothing to measure.

    Attributes:
        occm: mean over shots with characters, 0 to 100.
        cross, own: CIDS; means over characters. One who was never found counts as 0, as published.
        copied: mean copy-paste rate of the characters that were found, 0 to 1.
    """

    occm: float
    cross: float = math.nan
    own: float = math.nan
    copied: float = math.nan


def occm(expected: int, found: int) -> float:
    """Return how well the number of characters matches: 100 exp(-|found - expected| / expected)."""
    return 100 * math.exp(-abs(found - expected) / (_EPSILON + expected))


def characters_of(
    story: Story, images: Mapping[int, Path], detector: Detector, encoder: Encoder | None
) -> CharacterScores:
    """Return the scores of one story.

    Args:
        story: of the benchmark.
        images: files by the numbers of their shots.
        detector: of characters.
        encoder: of identity; None measures OCCM alone.
    """
    matches: list[float] = []
    crops: dict[int, list[Image.Image]] = {}
    staged = [shot for shot in story.shots if shot.index in images and shot.on_stage]
    for shot in staged:
        crops[shot.index] = _crops(load_rgb(images[shot.index]), detector)
        matches.append(occm(len(shot.on_stage), len(crops[shot.index])))
    mean = float(np.mean(matches)) if matches else math.nan
    if encoder is None or not staged:
        return CharacterScores(mean)
    references = {key: _reference_crops(each, detector) for key, each in story.characters.items() if each.references}
    known = {key: encoder.images(each) for key, each in references.items()}
    found: dict[str, list[Tensor]] = {key: [] for key in story.characters}
    for shot in staged:
        if not crops[shot.index]:
            continue
        vectors = encoder.images(crops[shot.index])
        keys = [key for key in shot.on_stage if key in known]
        if keys:
            likeness = torch.stack([(vectors @ known[key].T).amax(dim=1) for key in keys]).numpy()
            for row, column in zip(*linear_sum_assignment(-likeness), strict=True):
                found[keys[row]].append(vectors[column])
    return CharacterScores(mean, *_identity(found, known, references, encoder))


def _identity(
    found: Mapping[str, Sequence[Tensor]],
    known: Mapping[str, Tensor],
    references: Mapping[str, Sequence[Image.Image]],
    encoder: Encoder,
) -> tuple[float, float, float]:
    """Return cross and self similarity and the copy-paste rate, over all characters of the script."""
    cross, own, copied = [], [], []
    for key, each in found.items():
        if not each:
            cross.append(0.0)
            own.append(0.0)
            continue
        vectors = torch.stack(list(each))
        cross.append(float((vectors @ known[key].T).mean()))
        own.append(mean_of_pairs(vectors) if len(vectors) > 1 else 1.0)
        first = references[key][0]
        sides = encoder.images([first, ImageOps.mirror(first)])
        copied.append(float(((vectors @ sides.T).clamp(-1, 1) / _TEMPERATURE).softmax(dim=1)[:, 0].mean()))
    return float(np.mean(cross)), float(np.mean(own)), float(np.mean(copied)) if copied else math.nan


def _crops(image: Image.Image, detector: Detector) -> list[Image.Image]:
    found = []
    for left, top, right, bottom in detector.boxes(image):
        box = max(0, int(left)), max(0, int(top)), min(image.width, int(right)), min(image.height, int(bottom))
        if box[0] < box[2] and box[1] < box[3]:
            found.append(image.crop(box))
    return found


def _reference_crops(character: Character, detector: Detector) -> list[Image.Image]:
    """Return the surest find in each reference; all references whole if there is none in any."""
    images = [load_rgb(file) for file in character.references]
    crops = [found[0] for image in images if (found := _crops(image, detector))]
    return crops or images
