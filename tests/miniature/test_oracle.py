"""The oracle's error rate on rendered, noised and blurred images, whose truth is known."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
from PIL import Image, ImageFilter

from dsd_lightning.miniature import oracle, planes
from dsd_lightning.miniature.renderer import render
from dsd_lightning.miniature.world import Scene, change_identity, draw_context, draw_identity
from dsd_lightning.randomness import numpy_generator

NOISED, BLURRED = 2, 6
"""Pairs with noise, and images that are blurred as generated ones are."""

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
        image = render(shown).image
        layout, color = planes.layout_of(shown), coloring(shown)
        assert planes.scene_of(layout, color) == shown
        distance = planes.distances(planes.pooled(image), layout)[color]
        if image.max() < 1:
            unclipped += 1
            assert distance < 2e-3
        assert distance < 0.14
    assert unclipped >= 5


def blurred(values: np.ndarray, deviation: float) -> np.ndarray:
    image = Image.fromarray((values * 255).round().astype(np.uint8)).filter(ImageFilter.GaussianBlur(deviation))
    return np.asarray(image, dtype=np.float32) / 255


@pytest.mark.long
def test_the_oracle_errs_hardly_ever_and_says_when_it_cannot_tell() -> None:
    wrong = ambiguous = 0
    for index in range(NOISED):
        rng = numpy_generator("oracle pair", index)
        one = scene(1000 + index)
        who = one.identity
        if index % 2:
            names = sorted(vars(who))
            who = change_identity(who, names[int(rng.integers(0, len(names)))], rng)
        other = Scene(who, draw_context(rng))
        seen = [
            oracle.see((render(each).image + rng.normal(0, NOISE, (64, 64, 3))).clip(0, 1)) for each in (one, other)
        ]
        said = oracle.same_identity(*seen)
        ambiguous += said == "ambiguous"
        wrong += said not in ("ambiguous", "yes" if who == one.identity else "no")
    assert wrong == 0
    assert ambiguous == 0


@pytest.mark.long
def test_of_blurred_images_it_is_right_or_cannot_tell() -> None:
    shown = [scene(2000 + index) for index in range(BLURRED)]
    seen = [oracle.see(blurred(render(each).image, 0.75 + 1.25 * index / BLURRED)) for index, each in enumerate(shown)]
    right = [at.scene.identity == truth.identity for at, truth in zip(seen, shown, strict=True) if not at.ambiguous]
    assert all(right)
    assert BLURRED // 3 <= len(right) < BLURRED
    # That two are not the same is told although it is not clear who they are.
    said = [oracle.same_identity(*pair) for pair in combinations(seen, 2)]
    assert "yes" not in said
    assert said.count("no") > len(said) // 2
    assert all(oracle.same_identity(each, each) != "no" for each in seen)


def test_what_is_no_image_of_this_world_is_ambiguous() -> None:
    noise = numpy_generator("no image").random((64, 64, 3))
    assert oracle.see(noise).ambiguous
