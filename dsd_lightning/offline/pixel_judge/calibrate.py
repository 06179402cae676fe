"""Fits the coefficients of the pixel judge on rendered images whose characters are known.

python -m dsd_lightning.offline.pixel_judge.calibrate

Grids of the miniature world are rendered, passed through the tiny VAE as generated ones are, and cut. In half of them all
panels show one character; in the others each panel's differs from the first one's in one attribute. The coefficients
that a logistic regression finds go into `conf/agents/model/offline_judge.yaml`.
"""

from __future__ import annotations

import sys
from itertools import combinations

import numpy as np
import torch
from einops import rearrange
from numpy.typing import NDArray
from PIL import Image

from dsd_lightning.files.checkout import in_checkout
from dsd_lightning.flux.base import FluxBase
from dsd_lightning.images.pixels import to_image
from dsd_lightning.miniature.renderer import RESOLUTION, render
from dsd_lightning.miniature.world import (
    Identity,
    Scene,
    change_identity,
    draw_context,
    draw_identity,
    share_light_and_style,
)
from dsd_lightning.offline.pixel_judge import same_character as eyes
from dsd_lightning.randomness import numpy_generator

GRIDS = 60
_STEPS, _RATE, _DECAY = 4000, 0.05, 1e-3
_SMALL = 16


def panels_of(index: int) -> tuple[list[Image.Image], list[Identity]]:
    """Return four rendered panels under one light, and who is in them."""
    rng = numpy_generator("calibrate", index)
    first, base = draw_context(rng), draw_identity(rng, held_out=False)
    shown = [base] * 4
    if index % 2:
        names = list(Identity.vocabulary)
        shown = [base, *(change_identity(base, names[int(rng.integers(0, len(names)))], rng) for _ in range(3))]
    contexts = [first, *(share_light_and_style(draw_context(rng), first) for _ in range(3))]
    images = [render(Scene(who, context)).image for who, context in zip(shown, contexts, strict=True)]
    return [Image.fromarray((image * 255).round().astype(np.uint8)) for image in images], shown


def through_vae(grids: list[list[Image.Image]]) -> list[list[Image.Image]]:
    """Return panels as the VAE of the tiny base rebuilds their grids."""
    codec = FluxBase(in_checkout("assets/tiny-flux"), text_length=24, guidance_scale=3.5).codec()
    rebuilt: list[list[Image.Image]] = []
    for start in range(0, len(grids), _SMALL):
        values = np.stack([np.stack([np.asarray(panel) for panel in grid]) for grid in grids[start : start + _SMALL]])
        pixels = rearrange(torch.from_numpy(values).float() / 127.5 - 1, "b (r c) h w d -> b d (r h) (c w)", r=2)
        with torch.no_grad():
            decoded = codec.decode(codec.encode(pixels)).clamp(-1, 1)
        cut = rearrange(decoded, "b d (r h) (c w) -> b (r c) d h w", h=RESOLUTION, w=RESOLUTION)
        rebuilt += [[to_image(panel) for panel in grid] for grid in cut]
    return rebuilt


def fit(features: NDArray[np.float64], same: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Return bias and coefficients of a logistic regression, by gradient descent on standardised features."""
    mean, scale = features.mean(axis=0), features.std(axis=0)
    inputs = np.concatenate([np.ones((len(features), 1)), (features - mean) / scale], axis=1)
    weights = np.zeros(inputs.shape[1])
    for _ in range(_STEPS):
        wrong = 1 / (1 + np.exp(-inputs @ weights)) - same
        weights -= _RATE * (inputs.T @ wrong / len(same) * 10 + _DECAY * weights)
    slopes = weights[1:] / scale
    return np.concatenate([[weights[0] - float(slopes @ mean)], slopes])


def main() -> None:
    """Print the coefficients and how well they separate the pairs."""
    grids = [panels_of(index) for index in range(GRIDS)]
    rebuilt = through_vae([grid for grid, _ in grids])
    features, same, unseen = [], [], 0
    for grid, (_, shown) in zip(rebuilt, grids, strict=True):
        characters = [eyes.cut_out(panel) for panel in grid]
        for i, j in combinations(range(4), 2):
            one, other = characters[i], characters[j]
            if one is None or other is None:
                unseen += 1
                continue
            likeness = eyes.compare(one, other)
            features.append([likeness.mean, likeness.worst])
            same.append(shown[i] == shown[j])
    table, truth = np.asarray(features), np.asarray(same)
    weights = fit(table, truth)
    said = weights[0] + table @ weights[1:] > 0
    sys.stdout.write(
        f"{len(truth)} pairs, {truth.mean():.2f} the same, {unseen} not cut out\n"
        + "".join(f"{n}: {w:.2f}\n" for n, w in zip(("bias", "mean", "worst"), weights, strict=True))
        + f"precision {truth[said].mean():.3f}, recall {said[truth].mean():.3f}\n"
    )


if __name__ == "__main__":
    main()
