"""How often is the oracle wrong? On rendered, noised and blurred pictures, whose truth is known."""

from __future__ import annotations

import numpy as np
import pytest

from dsd_lightning.miniature import oracle, planes
from dsd_lightning.miniature.renderer import render
from dsd_lightning.miniature.world import Scene, change_identity, draw_context, draw_identity
from dsd_lightning.randomness import numpy_generator

PAIRS = 6
NOISE = 0.06
"""Standard deviation on the [0, 1] scale."""


def scene(index: int) -> Scene:
    rng = numpy_generator("oracle", index)
    return Scene(draw_identity(rng, held_out=None), draw_context(rng))


def coloring(shown: Scene) -> int:
    wanted = [
        *(shown.context.light_color, shown.context.background_color),
        *(shown.identity.color, shown.identity.second_color),
    ]
    return int(np.flatnonzero((wanted == planes.COLORINGS).all(axis=1))[0])


def test_planes_are_the_renderer_before_it_clips() -> None:
    unclipped = 0
    for index in range(40):
        shown = scene(index)
        picture = render(shown).picture
        layout, color = planes.layout_of(shown), coloring(shown)
        assert planes.scene_of(layout, color) == shown
        distance = planes.distances(planes.pooled(picture), layout)[color]
        if picture.max() < 1:
            unclipped += 1
            assert distance < 2e-3
        assert distance < 0.12
    assert unclipped >= 5


def blurred(picture: np.ndarray) -> np.ndarray:
    padded = np.pad(picture, ((1, 1), (1, 1), (0, 0)), mode="edge")
    return (padded[:-2, 1:-1] + padded[2:, 1:-1] + padded[1:-1, :-2] + padded[1:-1, 2:] + 2 * picture) / 6


@pytest.mark.slow
def test_the_oracle_errs_hardly_ever_and_says_when_it_cannot_tell() -> None:
    wrong = ambiguous = 0
    for index in range(PAIRS):
        rng = numpy_generator("oracle pair", index)
        one = scene(1000 + index)
        who = one.identity
        if index % 2:
            names = sorted(vars(who))
            who = change_identity(who, names[int(rng.integers(0, len(names)))], rng)
        other = Scene(who, draw_context(rng))
        seen = [
            oracle.see((blurred(render(each).picture) + rng.normal(0, NOISE, (64, 64, 3))).clip(0, 1))
            for each in (one, other)
        ]
        said = oracle.same_identity(*seen)
        ambiguous += said == "ambiguous"
        wrong += said not in ("ambiguous", "yes" if who == one.identity else "no")
    assert wrong == 0
    assert ambiguous <= PAIRS // 4


def test_what_is_no_picture_of_this_world_is_ambiguous() -> None:
    noise = numpy_generator("no picture").random((64, 64, 3))
    assert oracle.see(noise).ambiguous
