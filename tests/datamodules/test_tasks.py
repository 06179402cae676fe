"""The pairs of every task are fixed by their number, held out, aligned and captioned as the task requires."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from hydra.utils import get_class, instantiate
from support.commands import CONF, compose_train
from torch import Tensor
from transformers import AutoTokenizer

from datamodules.base import PairData
from datamodules.sources.miniature import Miniature, MiniaturePairs, to_pixels
from dsd_lightning.miniature.captions import depth_caption
from dsd_lightning.miniature.renderer import Rendering, render
from dsd_lightning.miniature.world import (
    LIGHT_COLORS,
    LIGHT_DIRECTIONS,
    PLACES,
    Context,
    Identity,
    Scene,
    change_light,
    draw_context,
    lights,
)
from dsd_lightning.pairs import Pair
from dsd_lightning.pretraining.vae import ImageBatches
from dsd_lightning.randomness import numpy_generator

TASKS = ("identity", "depth", "relighting")
ALIGNED = ("depth", "relighting")
COUNT = 30


@cache
def pairs_of(task: str, split: str = "training", seed: int = 0) -> MiniaturePairs:
    """Return pairs of the task that `conf/task/TASK.yaml` configures."""
    config = compose_train(Path("run"), f"task={task}").task
    data = get_class(config.datamodule)(instantiate(config.relation), Miniature(COUNT, 0, pool=False), 4, 0)
    assert isinstance(data, PairData)
    return MiniaturePairs(data, COUNT, seed, split)


def rendered(facts: dict[str, list[int]], which: str) -> Rendering:
    return render(Scene(Identity(*facts["identity"]), Context(*facts[which])))


def equal(one: Pair, other: Pair) -> bool:
    words = (one.key, one.caption, one.instruction) == (other.key, other.caption, other.instruction)
    assert one.reference is not None
    assert other.reference is not None
    return words and torch.equal(one.reference, other.reference) and torch.equal(one.target, other.target)


@pytest.mark.parametrize("task", TASKS)
def test_a_pair_depends_on_seed_task_split_and_number_alone(task: str) -> None:
    first, again = pairs_of(task), pairs_of.__wrapped__(task)
    assert all(equal(first[index], again[index]) for index in (7, 0, 3, 7))
    changed = [pairs_of(task, seed=1)[7], pairs_of(task, split="probe")[7], first[8]]
    assert not any(torch.equal(first[7].target, other.target) for other in changed)


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize(("split", "held_out"), [("training", False), ("validation", True), ("probe", True)])
def test_held_out_identities_stay_held_out(task: str, split: str, held_out: bool) -> None:
    pairs = pairs_of(task, split)
    assert {Identity(*pairs[index].facts["identity"]).held_out for index in range(COUNT)} == {held_out}


@pytest.mark.parametrize("task", TASKS)
def test_the_target_is_the_scene_of_the_facts(task: str) -> None:
    pairs = pairs_of(task)
    for index in range(5):
        assert torch.equal(pairs[index].target, to_pixels(rendered(pairs[index].facts, "target")))


@pytest.mark.parametrize("task", ALIGNED)
def test_aligned_tasks_show_the_same_silhouette_in_both_images(task: str) -> None:
    pairs = pairs_of(task)
    assert pairs.data.task.aligned
    for index in range(COUNT):
        facts = pairs[index].facts
        one, other = rendered(facts, "reference"), rendered(facts, "target")
        assert np.array_equal(one.mask, other.mask)
        assert np.array_equal(one.depth, other.depth)


# --- Depth.


def test_a_depth_map_is_the_true_depth_near_is_bright() -> None:
    pairs = pairs_of("depth")
    for index in range(10):
        pair = pairs[index]
        truth = rendered(pair.facts, "target")
        assert pair.reference is not None
        assert pair.reference.shape == (3, 64, 64)
        assert -1 <= float(pair.reference.min()) < float(pair.reference.max()) <= 1
        for channel in pair.reference:
            np.testing.assert_allclose((1 - channel.numpy()) / 2, truth.depth, atol=1e-6)
        nearest = np.unravel_index(truth.depth.argmin(), truth.depth.shape)
        assert pair.reference[0][nearest] == pair.reference.max()


def test_the_vae_is_trained_on_depth_maps_of_the_same_convention() -> None:
    images = torch.cat([ImageBatches(8, 65536, seed=0)[step] for step in (0, 1)])
    gray = [image for image in images if torch.equal(image[0], image[1])]
    assert gray
    pairs = pairs_of("depth")
    maps = torch.stack([reference for index in range(COUNT) if (reference := pairs[index].reference) is not None])

    def borders(batch: Tensor) -> tuple[float, float]:
        return float(batch[:, :, 0].amin()), float(batch.amin())

    # The upper border is the farthest of the world: black, in both.
    assert borders(torch.stack(gray)) == pytest.approx(borders(maps), abs=1e-6)
    assert float(maps[:, :, 0].mean()) < float(maps[:, :, -1].mean())


def test_a_depth_caption_names_the_subject_and_the_surroundings_but_neither_size_nor_place_nor_rotation() -> None:
    pairs = pairs_of("depth")
    geometry = {*PLACES, "large", "small", "tilted", "upright"}
    for index in range(COUNT):
        pair = pairs[index]
        identity, context = Identity(*pair.facts["identity"]), Context(*pair.facts["target"])
        for name in ("shape", "color", "second_color", "pattern", "accessory"):
            assert identity.word(name) in pair.caption
        assert f"{context.word('background_kind')} {context.word('background_color')} background" in pair.caption
        # "light from the left" describes the light, not the place.
        before_light = pair.caption.partition(" background")[0]
        assert not geometry & set(before_light.replace(",", " ").split())
        assert pair.instruction is None


def test_scenes_that_differ_in_placement_alone_have_the_same_depth_captions() -> None:
    rng = numpy_generator("placement")
    pair = pairs_of("depth")[0]
    scene = Scene(Identity(*pair.facts["identity"]), Context(*pair.facts["target"]))
    for _ in range(10):
        other = draw_context(rng)
        context = Context(other.place, other.size, other.rotation, *scene.context.values()[3:])
        captions = {
            depth_caption(each, numpy_generator("template")) for each in (scene, Scene(scene.identity, context))
        }
        assert len(captions) == 1


# --- Relighting.


def test_only_the_light_changes_and_it_always_does() -> None:
    pairs = pairs_of("relighting")
    seen = set()
    for index in range(COUNT):
        pair = pairs[index]
        before, after = Context(*pair.facts["reference"]), Context(*pair.facts["target"])
        changed = before.differing(after)
        assert changed
        assert set(changed) <= {"light_direction", "light_color"}
        assert pair.reference is not None
        assert torch.equal(pair.reference, to_pixels(rendered(pair.facts, "reference")))
        assert not torch.equal(pair.reference, pair.target)
        seen.add((after.light_direction, after.light_color))
    assert len(seen) > 10


def test_every_other_light_is_as_likely() -> None:
    rng = numpy_generator("lights")
    context = draw_context(rng)
    assert len(set(lights(context))) == len(LIGHT_DIRECTIONS) * len(LIGHT_COLORS) == 15
    sampled_lights = [change_light(context, rng) for _ in range(1400)]
    counts = [sampled_lights.count(light) for light in lights(context)]
    assert counts[lights(context).index(context)] == 0
    others = [count for light, count in zip(lights(context), counts, strict=True) if light != context]
    assert 60 < min(others) <= max(others) < 140


def test_captions_and_instructions_name_the_new_light_and_nothing_of_the_scene() -> None:
    pairs = pairs_of("relighting")
    for index in range(COUNT):
        pair = pairs[index]
        light = Context(*pair.facts["target"])
        color, direction = light.word("light_color"), light.word("light_direction")
        assert pair.instruction is not None
        for words in (pair.caption, pair.instruction):
            assert color in words or color == "white"
            assert direction in words or direction == "front"
            assert "background" not in words
            assert "style" not in words


# --- The vocabulary.


@pytest.mark.parametrize("task", TASKS)
def test_all_words_are_in_the_tiny_bases_vocabulary_and_fit_its_text_length(task: str) -> None:
    tokenizer = AutoTokenizer.from_pretrained(CONF.parent / "assets" / "tiny-flux" / "tokenizer_2")
    length = compose_train(Path("run"), f"task={task}").base.model.text_length
    pairs = pairs_of(task)
    for index in range(COUNT):
        for words in (pairs[index].caption, pairs[index].instruction):
            if words is not None:
                ids = tokenizer(words).input_ids
                assert tokenizer.unk_token_id not in ids, words
                assert len(ids) <= length
