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


@dataclass(frozen=True)
class Cast:
    """Who was found in the shots of a story.

    Attributes:
        matches: OCCM of each shot with characters.
        references: cut-outs of a character's references, or these whole where nothing was found in any.
        known: their embeddings.
        cutouts: of a shot's characters, by number of the shot and key, in the order of the script.
        vectors: embeddings of a character's cut-outs, shot by shot; none of one who was never found.
    """

    matches: Sequence[float]
    references: Mapping[str, Sequence[Image.Image]]
    known: Mapping[str, Tensor]
    cutouts: Mapping[int, Mapping[str, Image.Image]]
    vectors: Mapping[str, Sequence[Tensor]]


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
    return scores_of(cast_of(story, images, detector, encoder), encoder)


def cast_of(story: Story, images: Mapping[int, Path], detector: Detector, encoder: Encoder | None) -> Cast:
    """Return the characters of one story that are found, matched to the script's; see `characters_of`.

    Characters are assigned to cut-outs so that the sum of their greatest similarities to a reference is greatest.
    """
    matches: list[float] = []
    shown: dict[int, list[Image.Image]] = {}
    staged = [shot for shot in story.shots if shot.index in images and shot.on_stage]
    for shot in staged:
        shown[shot.index] = crops(load_rgb(images[shot.index]), detector)
        matches.append(occm(len(shot.on_stage), len(shown[shot.index])))
    if encoder is None or not staged:
        return Cast(matches, {}, {}, {}, {})
    references = {key: _reference_crops(each, detector) for key, each in story.characters.items() if each.references}
    known = {key: encoder.images(each) for key, each in references.items()}
    vectors: dict[str, list[Tensor]] = {key: [] for key in story.characters}
    cutouts: dict[int, dict[str, Image.Image]] = {}
    for shot in staged:
        keys = [key for key in shot.on_stage if key in known]
        if not shown[shot.index] or not keys:
            continue
        found = encoder.images(shown[shot.index])
        likeness = torch.stack([(found @ known[key].T).amax(dim=1) for key in keys]).numpy()
        cutouts[shot.index] = {}
        for row, column in zip(*linear_sum_assignment(-likeness), strict=True):
            vectors[keys[row]].append(found[column])
            cutouts[shot.index][keys[row]] = shown[shot.index][column]
    return Cast(matches, references, known, cutouts, vectors)


def scores_of(cast: Cast, encoder: Encoder | None) -> CharacterScores:
    """Return the scores of one story's cast, whose identity was measured by `encoder`."""
    mean = float(np.mean(cast.matches)) if cast.matches else math.nan
    if encoder is None or not cast.vectors:
        return CharacterScores(mean)
    cross, own, copied = [], [], []
    for key, each in cast.vectors.items():
        if not each:
            cross.append(0.0)
            own.append(0.0)
            continue
        vectors = torch.stack(list(each))
        cross.append(float((vectors @ cast.known[key].T).mean()))
        own.append(mean_of_pairs(vectors) if len(vectors) > 1 else 1.0)
        first = cast.references[key][0]
        sides = encoder.images([first, ImageOps.mirror(first)])
        copied.append(float(((vectors @ sides.T).clamp(-1, 1) / _TEMPERATURE).softmax(dim=1)[:, 0].mean()))
    copy_paste = float(np.mean(copied)) if copied else math.nan
    return CharacterScores(mean, float(np.mean(cross)), float(np.mean(own)), copy_paste)


def crops(image: Image.Image, detector: Detector) -> list[Image.Image]:
    """Return the cut-outs of what is found, to the pixel as published: whole centres and sizes, corners rounded to even."""
    wide, high = image.size
    found = []
    for left, top, right, bottom in detector.boxes(image):
        x, y, width, height = int((left + right) / 2), int((top + bottom) / 2), int(right - left), int(bottom - top)
        box = (
            max(0.0, x - width / 2),
            max(0.0, y - height / 2),
            min(float(wide), x + width / 2),
            min(float(high), y + height / 2),
        )
        left, top, right, bottom = map(round, box)
        if left < right and top < bottom:
            found.append(image.crop((left, top, right, bottom)))
    return found


def _reference_crops(character: Character, detector: Detector) -> list[Image.Image]:
    """Return the surest find in each reference; all references whole if there is none in any."""
    images = [load_rgb(file) for file in character.references]
    found = [cutouts[0] for image in images if (cutouts := crops(image, detector))]
    return found or images
