"""The metrics of depth and relighting measure what they say: laws, on rendered truths that were distorted."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL
from support.commands import CONF
from torch import Tensor

from dsd_lightning.flux.codec import Codec
from dsd_lightning.miniature import geometry
from dsd_lightning.miniature.metrics.base import SampleMetric
from dsd_lightning.miniature.metrics.geometry_metrics import DepthAbsRel, MaskIoU
from dsd_lightning.miniature.metrics.light_metrics import LightColorAccuracy, LightDirectionAccuracy
from dsd_lightning.miniature.renderer import render
from dsd_lightning.miniature.world import Context, Identity, Scene, change_context, draw_context, draw_identity, lights
from dsd_lightning.pairs import PairBatch
from dsd_lightning.randomness import normal, numpy_generator

SAMPLES = 24
GEOMETRY = (MaskIoU, DepthAbsRel)
LIGHT = (LightDirectionAccuracy, LightColorAccuracy)

Change = Callable[[Scene], Scene]


def pixels(scene: Scene) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(render(scene).image.transpose(2, 0, 1))) * 2 - 1


def facts_of(scene: Scene) -> dict[str, list[int]]:
    return {"identity": list(scene.identity.values()), "target": list(scene.context.values())}


@pytest.fixture(scope="module")
def scenes() -> list[Scene]:
    rng = numpy_generator("task metrics test")
    return [Scene(draw_identity(rng, held_out=True), draw_context(rng)) for _ in range(SAMPLES)]


@pytest.fixture(scope="module")
def truths(scenes: list[Scene]) -> Tensor:
    return torch.stack([pixels(scene) for scene in scenes])


def measured(kind: type[SampleMetric], images: Tensor, scenes: list[Scene]) -> float:
    metric = kind()
    metric.update(images, [facts_of(scene) for scene in scenes])
    return float(metric.compute())


def changed(scenes: list[Scene], change: Change) -> Tensor:
    return torch.stack([pixels(change(scene)) for scene in scenes])


# --- Extremes.


@pytest.mark.parametrize(("kind", "right"), [(MaskIoU, 1.0), (DepthAbsRel, 0.0)] + [(kind, 1.0) for kind in LIGHT])
def test_the_truth_is_exactly_right(
    kind: type[SampleMetric], right: float, scenes: list[Scene], truths: Tensor
) -> None:
    assert measured(kind, truths, scenes) == right


@pytest.mark.parametrize("kind", [*GEOMETRY, *LIGHT])
def test_noise_and_the_vae_cost_little(kind: type[SampleMetric], scenes: list[Scene], truths: Tensor) -> None:
    vae = AutoencoderKL.from_pretrained(CONF.parent / "assets" / "tiny-flux" / "vae", torch_dtype=torch.float32)
    codec = Codec(vae)
    through = codec.decode(codec.encode(truths))
    noisy = truths + 0.1 * normal(truths.shape, "noise")
    for images in (through, noisy):
        value = measured(kind, images, scenes)
        # Over 256 samples: geometry_metrics.py and light_metrics.py.
        assert value <= 0.02 if kind is DepthAbsRel else value >= 0.9


# --- Geometry.


def test_an_empty_image_has_no_character(scenes: list[Scene], truths: Tensor) -> None:
    assert measured(MaskIoU, torch.zeros_like(truths), scenes) == 0
    assert measured(DepthAbsRel, torch.zeros_like(truths), scenes) > 0.4


def test_geometry_does_not_depend_on_appearance_background_or_light(scenes: list[Scene]) -> None:
    rng = numpy_generator("other appearance")

    def dressed(scene: Scene) -> Scene:
        who, where = draw_identity(rng, held_out=None), draw_context(rng)
        return Scene(
            replace(who, shape=scene.identity.shape, accessory=scene.identity.accessory),
            replace(where, place=scene.context.place, size=scene.context.size, rotation=scene.context.rotation),
        )

    images = changed(scenes, dressed)
    assert measured(MaskIoU, images, scenes) >= 0.99
    assert measured(DepthAbsRel, images, scenes) <= 0.005


@pytest.mark.parametrize("attribute", ["place", "size"])
def test_a_wrong_place_or_size_costs(attribute: str, scenes: list[Scene]) -> None:
    rng = numpy_generator("wrong", attribute)
    images = changed(scenes, lambda scene: Scene(scene.identity, change_context(scene.context, attribute, rng)))
    assert measured(MaskIoU, images, scenes) < 0.75
    assert measured(DepthAbsRel, images, scenes) > 0.08


def test_geometry_is_scored_by_the_true_masks_and_depths(scenes: list[Scene]) -> None:
    """For every wrong image the metrics are those of the two renderings, by the textbook."""
    rng = numpy_generator("textbook")
    for scene in scenes[:8]:
        other = Scene(draw_identity(rng, held_out=None), draw_context(rng))
        one, truth = render(other), render(scene)
        masks = one.mask >= 0.5, truth.mask >= 0.5
        overlap = np.logical_and(*masks).sum() / np.logical_or(*masks).sum()
        error = np.mean(np.abs(one.depth - truth.depth) / truth.depth)
        assert measured(MaskIoU, pixels(other)[None], [scene]) == pytest.approx(overlap, abs=1e-6)
        assert measured(DepthAbsRel, pixels(other)[None], [scene]) == pytest.approx(error, abs=1e-5)


def test_overlap_falls_as_more_images_are_wrong(scenes: list[Scene], truths: Tensor) -> None:
    wrong = truths.roll(1, dims=0)
    overlaps = [measured(MaskIoU, torch.cat([wrong[:count], truths[count:]]), scenes) for count in (0, 8, 16, SAMPLES)]
    assert overlaps == sorted(overlaps, reverse=True)
    assert overlaps[0] - overlaps[-1] > 0.3


def test_every_silhouette_of_the_world_is_a_candidate() -> None:
    silhouettes = geometry.silhouettes()
    assert len(silhouettes.keys) == len(set(silhouettes.keys)) == 721
    assert silhouettes.keys[-1] == ()
    assert not silhouettes.masks[-1].any()
    assert silhouettes.masks[:-1].any(axis=1).all()
    assert 0 < silhouettes.depths.min() < silhouettes.depths.max() <= 1


# --- Light.


@pytest.mark.parametrize(("kind", "other"), [LIGHT, LIGHT[::-1]])
def test_a_wrong_light_is_wrong_and_only_in_what_is_wrong(
    kind: type[SampleMetric], other: type[SampleMetric], scenes: list[Scene]
) -> None:
    attribute = getattr(kind, "attribute")  # noqa: B009
    rng = numpy_generator("wrong light", attribute)
    images = changed(scenes, lambda scene: Scene(scene.identity, change_context(scene.context, attribute, rng)))
    assert measured(kind, images, scenes) == 0
    assert measured(other, images, scenes) == 1


def test_every_light_can_be_told(scenes: list[Scene]) -> None:
    for context in lights(scenes[0].context):
        scene = Scene(scenes[0].identity, context)
        assert [measured(kind, pixels(scene)[None], [scene]) for kind in LIGHT] == [1, 1]


# --- Keeping the contract of metrics.


@pytest.mark.parametrize("kind", [*GEOMETRY, *LIGHT])
def test_a_metric_scores_batches_of_the_miniature_alone_and_adds_them_up(
    kind: type[SampleMetric], scenes: list[Scene], truths: Tensor
) -> None:
    images = truths.roll(1, dims=0)
    facts = [facts_of(scene) for scene in scenes]
    whole, parts = kind(), kind()
    whole.update(images, facts)
    for start in range(0, SAMPLES, 10):
        chosen = slice(start, start + 10)
        names = [str(index) for index in range(SAMPLES)][chosen]
        batch = PairBatch(names, [0] * len(names), names, truths[chosen], truths[chosen], facts=facts[chosen])
        assert parts.can_score(batch, ("target",))
        assert not parts.can_score(replace(batch, facts=[{}] * len(names)), ("target",))
        cut = truths[chosen, :, :32]
        assert not parts.can_score(replace(batch, reference=cut, target=cut), ("target",))
        parts.score({"target": images[chosen]}, batch)
    assert float(whole.compute()) == pytest.approx(float(parts.compute()), rel=1e-6)
    assert 0 < float(whole.compute()) < 1
    whole.reset()
    whole.update(truths, facts)
    assert float(whole.compute()) == (0 if kind is DepthAbsRel else 1)


@pytest.mark.parametrize("kind", [*GEOMETRY, *LIGHT])
def test_images_of_another_size_are_refused(kind: type[SampleMetric], scenes: list[Scene], truths: Tensor) -> None:
    with pytest.raises(ValueError, match=r"32 x 32 .* 64 x 64"):
        measured(kind, truths[:, :, ::2, ::2], scenes)


def test_contexts_and_identities_are_drawn_from_the_whole_world(scenes: list[Scene]) -> None:
    """Guards the laws above against samples that are all alike."""
    assert len({scene.identity.shape for scene in scenes}) >= 4
    assert len({scene.context.place for scene in scenes}) == len(Context.vocabulary["place"])
    assert all(isinstance(scene.identity, Identity) for scene in scenes)
