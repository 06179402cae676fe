"""Measures the characters of a story as ViStoryBench does: how many are there, whether they are the same, whether copied.

A detector cuts characters out of shots and references. OCCM compares their number with the script's. CIDS matches them to the
script's characters by an encoder (published: CLIP ViT-L/14, and faces for realistic people) and compares them with
the references (cross) and with each other (self). The copy-paste rate is how much nearer they are to the first reference than
to its mirror image, by a softmax of temperature 0.01: 0.5 for images that do not repeat its pixels.

Cut-outs and references without a face are left out for the characters that are compared by faces, and counted. A character
none of whose references has a face cannot be measured and is left out, where the published code stops.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import astuple, dataclass, field
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from PIL import Image, ImageOps
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from dsd_lightning.evaluation.similarity.encoders import Encoder, are_encoded
from dsd_lightning.evaluation.similarity.measures import mean_of_pairs
from dsd_lightning.evaluation.stories.dataset import Character, Story
from dsd_lightning.images.pixels import load_rgb

REALISTIC = "realistic_human"
"""The tag of the characters whose faces are compared."""

_EPSILON, _TEMPERATURE = 1e-6, 0.01

_NO_MATCH = np.float32(-1e6)
"""The likeness of a character and a cut-out that cannot be compared, as published."""


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


def occm(expected: int, detected: int) -> float:
    """Return how well the number of characters matches: 100 exp(-|detected - expected| / expected)."""
    return 100 * math.exp(-abs(detected - expected) / (_EPSILON + expected))


@dataclass(frozen=True)
class FaceCounts:
    """How often a face was looked for and not found; sums over stories.

    Attributes:
        cutouts: of shots with a character that is compared by faces.
        cutouts_without: of these, without a face. They can be such a character's seen from behind, or other characters'.
        characters: those compared by faces.
        unknown: of these, without a face in any reference; they are left out of CIDS.
        never: of the others, on stage and matched in no shot; they count as 0, as published.
    """

    cutouts: int = 0
    cutouts_without: int = 0
    characters: int = 0
    unknown: int = 0
    never: int = 0

    def __add__(self, other: FaceCounts) -> FaceCounts:
        """Return the sums."""
        return FaceCounts(*(one + another for one, another in zip(astuple(self), astuple(other), strict=True)))

    def __str__(self) -> str:
        """Return a line for people."""
        return (
            f"faces: none in {self.cutouts_without} of {self.cutouts} cut-outs; of {self.characters} realistic characters "
            f"{self.unknown} without a face in any reference (left out of CIDS), {self.never} never matched (0, as published)"
        )


@dataclass(frozen=True)
class Cast:
    """Who was found in the shots of a story.

    Attributes:
        matches: OCCM of each shot with characters.
        references: cut-outs of a character's references, or these whole where nothing was found in any; those that its encoder
            encodes.
        embeddings: unit vectors of these.
        encoders: of each character.
        cutouts: of a shot's characters, by number of the shot and key, in the order of the script.
        vectors: embeddings of a character's cut-outs, shot by shot; none of one who was never found.
        faces: what was counted.
    """

    matches: Sequence[float]
    references: Mapping[str, Sequence[Image.Image]] = field(default_factory=dict)
    embeddings: Mapping[str, Tensor] = field(default_factory=dict)
    encoders: Mapping[str, Encoder] = field(default_factory=dict)
    cutouts: Mapping[int, Mapping[str, Image.Image]] = field(default_factory=dict)
    vectors: Mapping[str, Sequence[Tensor]] = field(default_factory=dict)
    faces: FaceCounts = field(default_factory=FaceCounts)


def characters_of(
    story: Story,
    images: Mapping[int, Path],
    detector: Detector,
    encoder: Encoder | None,
    faces: Encoder | None = None,
) -> CharacterScores:
    """Return the scores of one story.

    Args:
        story: of the benchmark.
        images: files by the numbers of their shots.
        detector: of characters.
        encoder: of identity; None measures OCCM alone.
        faces: encoder of realistic people in its place; None treats them as the others.
    """
    return scores_of(cast_of(story, images, detector, encoder, faces))


def cast_of(
    story: Story,
    images: Mapping[int, Path],
    detector: Detector,
    encoder: Encoder | None,
    faces: Encoder | None = None,
) -> Cast:
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
        return Cast(matches)
    encoders = {
        key: faces if faces is not None and each.tag == REALISTIC else encoder for key, each in story.characters.items()
    }
    references: dict[str, Sequence[Image.Image]] = {}
    embeddings: dict[str, Tensor] = {}
    for key, each in story.characters.items():
        if each.references:
            references[key], embeddings[key] = _encoded_references(each, detector, encoders[key])
    unknown = [key for key, each in embeddings.items() if not len(each)]
    vectors: dict[str, list[Tensor]] = {key: [] for key in story.characters if key not in unknown}
    cutouts: dict[int, dict[str, Image.Image]] = {}
    looked_at, without = 0, 0
    for shot in staged:
        keys = [key for key in shot.on_stage if key in embeddings and key not in unknown]
        if not shown[shot.index] or not keys:
            continue
        by_encoder = {used: used.images(shown[shot.index]) for used in dict.fromkeys(encoders[key] for key in keys)}
        likeness = np.full((len(keys), len(shown[shot.index])), _NO_MATCH)
        for row, key in enumerate(keys):
            candidates = by_encoder[encoders[key]]
            usable = are_encoded(candidates)
            likeness[row, usable.numpy()] = (candidates[usable] @ embeddings[key].T).amax(dim=1).numpy()
        if faces in by_encoder:
            looked_at += len(shown[shot.index])
            without += int((~are_encoded(by_encoder[faces])).sum())
        cutouts[shot.index] = {}
        for row, column in zip(*linear_sum_assignment(-likeness), strict=True):
            if likeness[row, column] > _NO_MATCH:
                key = keys[row]
                vectors[key].append(by_encoder[encoders[key]][column])
                cutouts[shot.index][key] = shown[shot.index][column]
    by_face = [key for key, used in encoders.items() if used is faces]
    on_stage = {key for shot in staged for key in shot.on_stage}
    never = sum(key in vectors and not vectors[key] and key in on_stage for key in by_face)
    counts = FaceCounts(looked_at, without, len(by_face), sum(key in unknown for key in by_face), never)
    return Cast(matches, references, embeddings, encoders, cutouts, vectors, counts)


def scores_of(cast: Cast) -> CharacterScores:
    """Return the scores of one story's cast."""
    mean = float(np.mean(cast.matches)) if cast.matches else math.nan
    if not cast.vectors:
        return CharacterScores(mean)
    cross, own, copied = [], [], []
    for key, each in cast.vectors.items():
        if not each:
            cross.append(0.0)
            own.append(0.0)
            continue
        vectors = torch.stack(list(each))
        cross.append(float((vectors @ cast.embeddings[key].T).mean()))
        own.append(mean_of_pairs(vectors) if len(vectors) > 1 else 1.0)
        first = cast.references[key][0]
        sides = cast.encoders[key].images([first, ImageOps.mirror(first)])
        if not are_encoded(sides)[1]:
            sides[1] = sides[0]  # no face in the mirror image: no preference, as published
        copied.append(float(((vectors @ sides.T).clamp(-1, 1) / _TEMPERATURE).softmax(dim=1)[:, 0].mean()))
    copy_paste = float(np.mean(copied)) if copied else math.nan
    return CharacterScores(mean, float(np.mean(cross)), float(np.mean(own)), copy_paste)


def crops(image: Image.Image, detector: Detector) -> list[Image.Image]:
    """Return the cut-outs of what is found, to the pixel as published: whole centres and sizes, corners rounded to even."""
    wide, high = image.size
    cutouts = []
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
            cutouts.append(image.crop((left, top, right, bottom)))
    return cutouts


def _encoded_references(
    character: Character, detector: Detector, encoder: Encoder
) -> tuple[Sequence[Image.Image], Tensor]:
    """Return the surest find in each reference that the encoder encodes, and the embeddings; both empty if there is none.

    All references whole where nothing is found, or encoded, in any.
    """
    images = [load_rgb(file) for file in character.references]
    cut = [cutouts[0] for image in images if (cutouts := crops(image, detector))]
    for candidates in (cut, images):
        if candidates:
            vectors = encoder.images(candidates)
            encoded = are_encoded(vectors)
            if encoded.any():
                return [image for image, has in zip(candidates, encoded.tolist(), strict=True) if has], vectors[encoded]
    return [], torch.empty(0, 0)
