"""Candidates that a generated image is compared with: the truth and 15 fixed distractors, for identities and for contexts.

Five distractors differ from the truth in exactly one attribute, five different attributes; the other ten are drawn at
random. All sixteen are distinct, so guessing scores 1 / 16 = 0.0625. A distractor whose rendering can hardly be told from
the truth's would make the test unfair: it is drawn again (`VISIBLE_DIFFERENCE`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from dsd_lightning.miniature.renderer import render
from dsd_lightning.miniature.world import (
    Context,
    Identity,
    Scene,
    change_context,
    change_identity,
    draw_context,
    draw_identity,
)
from dsd_lightning.randomness import numpy_generator

CANDIDATES = 16
"""The truth (index 0) and its distractors."""

NEAR = 5
"""Distractors that differ from the truth in exactly one attribute; they come first, at indices 1 to 5."""

CHANCE = 1 / CANDIDATES
"""Accuracy of guessing."""

VISIBLE_DIFFERENCE = 0.05
"""Least distance (`distances`) of a distractor's rendering from the truth's, RMS RGB difference on the [-1, 1] scale."""

ATTEMPTS = 12
"""Draws of a near distractor's value before another attribute is taken."""

MEMORY = 8192
"""Renderings of candidates kept in memory; 256 samples need 7936 of 12 KiB, 93 MiB."""

Features = NDArray[np.float32]
"""Images as the distance sees them: [n, 32 * 32 * 3], 2 x 2 average pooled, on the [-1, 1] scale."""


def pooled(images: NDArray[np.float32]) -> Features:
    """Return images [n, 3, h, w] averaged over blocks of 2 x 2 pixels and flattened to [n, 3 * h/2 * w/2]."""
    count, channels, height, width = images.shape
    blocks = images.reshape(count, channels, height // 2, 2, width // 2, 2)
    return np.ascontiguousarray(blocks.mean(axis=(3, 5)).reshape(count, -1))


def distances(one: Features, others: Features) -> NDArray[np.float32]:
    """Return the root mean squared difference of `one` [d] from each of `others` [n, d]."""
    return np.sqrt(np.mean((others - one) ** 2, axis=-1))


@lru_cache(maxsize=MEMORY)
def rendered(scene: Scene) -> Features:
    """Return the pooled rendering [d] of a scene (shared: do not write into it)."""
    image = render(scene).image.transpose(2, 0, 1) * np.float32(2) - np.float32(1)
    features = pooled(image[None])[0]
    features.flags.writeable = False
    return features


def visibly_different(one: Scene, other: Scene) -> bool:
    """Return whether the renderings are at least `VISIBLE_DIFFERENCE` apart."""
    return float(distances(rendered(one), rendered(other)[None])[0]) >= VISIBLE_DIFFERENCE


def _collect(
    truth: Scene,
    attributes: Sequence[str],
    near: Callable[[str], Scene],
    far: Callable[[], Scene],
    rng: np.random.Generator,
) -> list[Scene]:
    """Return the truth, `NEAR` scenes that differ in one attribute each, and random ones."""
    chosen = [truth]

    def admissible(scene: Scene) -> bool:
        return scene not in chosen and visibly_different(truth, scene)

    for position in rng.permutation(len(attributes)):
        for _ in range(ATTEMPTS):
            scene = near(attributes[int(position)])
            if admissible(scene):
                chosen.append(scene)
                break
        if len(chosen) == 1 + NEAR:
            break
    while len(chosen) < CANDIDATES:
        scene = far()
        if len(differing(truth, scene)) > 1 and admissible(scene):
            chosen.append(scene)
    return chosen


def differing(one: Scene, other: Scene) -> list[str]:
    """Return the names of the attributes in which two scenes differ, the identity's before the context's."""
    return one.identity.differing(other.identity) + one.context.differing(other.context)


def identity_candidates(identity: Identity, context: Context, key: str) -> list[Scene]:
    """Return 16 scenes in the requested `context`: the true identity first, then 15 distractors fixed by `key`."""
    rng = numpy_generator("candidates", "identity", key)
    return _collect(
        Scene(identity, context),
        tuple(Identity.vocabulary),
        lambda attribute: Scene(change_identity(identity, attribute, rng), context),
        lambda: Scene(draw_identity(rng, held_out=None), context),
        rng,
    )


def context_candidates(identity: Identity, context: Context, key: str) -> list[Scene]:
    """Return 16 scenes of the true `identity`: the requested context first, then 15 distractors fixed by `key`."""
    rng = numpy_generator("candidates", "context", key)
    return _collect(
        Scene(identity, context),
        tuple(Context.vocabulary),
        lambda attribute: Scene(identity, change_context(context, attribute, rng)),
        lambda: Scene(identity, draw_context(rng)),
        rng,
    )
