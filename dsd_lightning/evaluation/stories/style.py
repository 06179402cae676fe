"""Measures the consistency of style as ViStoryBench does, with the embeddings of any encoder (published: CSD).

Self: the mean cosine of every two shots of a story. Cross: of each shot, the mean cosine to the first reference of each
character on stage; then the mean over shots. Unlike in the published code, a story without what is needed has no value
rather than 0.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from dsd_lightning.evaluation.similarity.encoders import Encoder
from dsd_lightning.evaluation.similarity.measures import mean_of_pairs
from dsd_lightning.evaluation.stories.dataset import Story
from dsd_lightning.images.pixels import load_rgb


def style_of(story: Story, images: Mapping[int, Path], encoder: Encoder) -> tuple[float, float]:
    """Return self and cross similarity of one story; NaN where there are too few images, or no reference.

    Args:
        story: of the benchmark.
        images: files by the numbers of their shots.
        encoder: of style.
    """
    present = [shot for shot in story.shots if shot.index in images]
    if not present:
        return math.nan, math.nan
    shots = _encoded([images[shot.index] for shot in present], encoder)
    own = mean_of_pairs(shots) if len(present) > 1 else math.nan
    references = {file: None for shot in present for file in story.first_references(shot)}
    if not references:
        return own, math.nan
    by_file = dict(zip(references, _encoded(list(references), encoder), strict=True))
    cross = [
        float(torch.stack([vector @ by_file[file] for file in story.first_references(shot)]).mean())
        for vector, shot in zip(shots, present, strict=True)
    ]
    return own, sum(cross) / len(cross)


def _encoded(files: list[Path], encoder: Encoder) -> Tensor:
    return encoder.images(load_rgb(file) for file in files)
