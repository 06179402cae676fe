"""The search for an image's identity finds the one that was rendered."""

from __future__ import annotations

import pytest

from dsd_lightning.miniature.inverse import infer_identity, matching_attributes
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
from dsd_lightning.randomness import normal, numpy_generator


def _image(scene: Scene, noise: float, key: int):
    clean = render(scene).image.transpose(2, 0, 1) * 2 - 1
    return (clean + noise * normal(clean.shape, "inverse", key).numpy()).astype("float32")


@pytest.mark.long
def test_the_rendered_identity_is_found_under_slight_noise():
    rng = numpy_generator("inverse")
    scenes = [Scene(draw_identity(rng, None), draw_context(rng)) for _ in range(10)]
    inferred = [infer_identity(_image(scene, 0.05, i), scene.context) for i, scene in enumerate(scenes)]
    assert sum(one == scene.identity for one, scene in zip(inferred, scenes, strict=True)) >= 9


def test_matching_attributes_are_all_right_for_the_truth_and_name_a_single_change():
    rng = numpy_generator("told")
    for index in range(3):
        scene = Scene(draw_identity(rng, None), draw_context(rng))
        assert all(matching_attributes(_image(scene, 0.02, index), scene).values())
        for name in ("shape", "color", "accessory", "face"):
            other = Scene(change_identity(scene.identity, name, rng), scene.context)
            assert not matching_attributes(_image(other, 0.02, index), scene)[name]
        other = Scene(scene.identity, change_context(scene.context, "place", rng))
        assert not matching_attributes(_image(other, 0.02, index), scene)["place"]
    assert set(matching_attributes(_image(scene, 0.0, 0), scene)) == {*Identity.vocabulary, *Context.vocabulary}
