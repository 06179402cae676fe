"""The miniature world has enough identities, visible attributes, and captions that do not name the subject."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from dsd_lightning.miniature.captions import (
    full_caption,
    grid_caption,
    instruction,
    relighting_caption,
    target_caption,
)
from dsd_lightning.miniature.renderer import render
from dsd_lightning.miniature.world import (
    ACCESSORIES,
    COLORS,
    PATTERNS,
    SHAPES,
    Context,
    Identity,
    Scene,
    all_identities,
    change_context,
    change_identity,
    draw_context,
    draw_identity,
    share_light_and_style,
)
from dsd_lightning.randomness import numpy_generator


def scenes(count: int, purpose: str) -> list[Scene]:
    rng = numpy_generator("test_miniature", purpose)
    return [Scene(draw_identity(rng, None), draw_context(rng)) for _ in range(count)]


def test_there_are_at_least_5000_identities_and_a_tenth_of_them_is_held_out():
    identities = list(all_identities())
    assert len(set(identities)) == len(identities) >= 5000
    share = np.mean([identity.held_out for identity in identities])
    assert 0.08 < share < 0.12
    # Every value of every attribute occurs on both sides.
    for held_out in (False, True):
        for name, words in Identity.vocabulary.items():
            assert {getattr(i, name) for i in identities if i.held_out == held_out} == set(range(len(words)))


def test_drawn_identities_keep_to_their_side():
    rng = numpy_generator("sides")
    assert all(draw_identity(rng, held_out=True).held_out for _ in range(20))
    assert not any(draw_identity(rng, held_out=False).held_out for _ in range(50))


def test_rendering_is_deterministic_and_in_range():
    for scene in scenes(5, "deterministic"):
        one, two = render(scene), render(scene)
        assert np.array_equal(one.image, two.image)
        assert one.image.dtype == np.float32
        for field in (one.image, one.mask, one.depth):
            assert field.min() >= 0
            assert field.max() <= 1
        assert one.depth.min() > 0


def test_edges_are_anti_aliased():
    mask = render(scenes(1, "edges")[0]).mask
    assert np.any((mask > 0.05) & (mask < 0.95))


@pytest.mark.parametrize("name", list(Identity.vocabulary))
def test_every_attribute_of_an_identity_can_be_seen(name: str):
    rng = numpy_generator("visible", name)
    for scene in scenes(10, "visible"):
        other = Scene(change_identity(scene.identity, name, rng), scene.context)
        assert scene.identity.differing(other.identity) == [name]
        assert np.abs(render(scene).image - render(other).image).max() > 0.1


@pytest.mark.parametrize("name", list(Context.vocabulary))
def test_every_attribute_of_a_context_can_be_seen(name: str):
    rng = numpy_generator("visible", name)
    for scene in scenes(10, "visible"):
        other = Scene(scene.identity, change_context(scene.context, name, rng))
        assert np.abs(render(scene).image - render(other).image).max() > 0.05


def test_light_changes_the_image_and_neither_mask_nor_depth():
    rng = numpy_generator("light")
    for scene in scenes(5, "light"):
        relit = Scene(scene.identity, change_context(scene.context, "light_direction", rng))
        one, two = render(scene), render(relit)
        assert np.array_equal(one.mask, two.mask)
        assert np.array_equal(one.depth, two.depth)
        assert np.abs(one.image - two.image).mean() > 0.01


def test_the_character_stands_in_front_of_the_background():
    for scene in scenes(5, "depth"):
        drawn = render(scene)
        inside, outside = drawn.depth[drawn.mask > 0.99], drawn.depth[drawn.mask < 0.01]
        assert inside.max() < outside.min()


def test_target_captions_and_instructions_never_tell_the_identity():
    rng = numpy_generator("captions")
    # Colour words may name a background; "top" and "left" a place: only words that belong to identities alone count.
    secret = set(SHAPES) | set(ACCESSORIES) | set(PATTERNS) | {"eye", "eyes", "glasses", "cyclops"}
    backgrounds = set(Context.vocabulary["background_color"])
    for _ in range(300):
        reference, target = draw_context(rng), draw_context(rng)
        for caption in (
            target_caption(target, rng),
            instruction(reference, target, rng),
            relighting_caption(target, rng),
            grid_caption(None, [target] * 4, rng),
        ):
            words = set(caption.replace(",", " ").replace(";", " ").split())
            assert not words & secret, caption
            assert words & set(COLORS) <= backgrounds | {"white"}, caption


def test_different_contexts_have_different_captions():
    rng = numpy_generator("distinct")
    context = draw_context(rng)
    for name in Context.vocabulary:
        other = change_context(context, name, rng)
        fixed = numpy_generator("template")
        again = numpy_generator("template")
        assert target_caption(context, fixed) != target_caption(other, again), name


def test_full_captions_tell_every_attribute_of_the_identity():
    rng = numpy_generator("full")
    for scene in scenes(20, "full"):
        caption = full_caption(scene, rng)
        for name in ("shape", "color", "second_color", "pattern", "accessory"):
            assert scene.identity.word(name) in caption


def test_templates_vary():
    rng = numpy_generator("templates")
    context = draw_context(rng)
    assert len({target_caption(context, rng) for _ in range(50)}) > 3


def test_panels_of_a_grid_share_light_and_style():
    rng = numpy_generator("grid")
    first, other = draw_context(rng), draw_context(rng)
    shared = share_light_and_style(other, first)
    assert set(shared.differing(other)) <= {"light_direction", "light_color", "style"}
    assert (shared.light_direction, shared.light_color, shared.style) == (
        first.light_direction,
        first.light_color,
        first.style,
    )


def test_impossible_values_are_refused_by_name():
    identity = next(all_identities())
    with pytest.raises(ValueError, match=r"shape=99 .*circle"):
        replace(identity, shape=99)
    with pytest.raises(ValueError, match="must differ"):
        replace(identity, second_color=identity.color)
