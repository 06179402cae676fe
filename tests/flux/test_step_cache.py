"""Step caches save what they say, change nothing where nothing is skipped, and keep images and passes apart."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from support.models.architecture_rows import ROWS, base, condition_of, images, with_random_weights
from torch import Tensor

from dsd_lightning.architectures.base import Architecture
from dsd_lightning.flux.codec import Codec
from dsd_lightning.flux.step_cache import FULL_STEPS, StepCache, StepCacheError
from dsd_lightning.pairs import Condition, TextEmbeddings
from dsd_lightning.randomness import normal
from dsd_lightning.rectified_flow import NoShift, euler_step, sampling_times
from dsd_lightning.sampler import SamplerSettings, sample

STEPS = 7
GUIDED = {"image_guidance": 1.3, "text_guidance": 2.0}
NULL = TextEmbeddings(torch.zeros(1, 5, 16), torch.zeros(1, 8))

NEVER = {"first_block:1e-12": STEPS, "taylor_seer:2": FULL_STEPS, "taylor_seer_lite:2": FULL_STEPS}
"""Caches, and the steps through which each of them skips nothing."""


class Halved(Codec):
    """Latents that are means of pixels: as quick as can be."""

    def __init__(self) -> None:
        torch.nn.Module.__init__(self)

    def fingerprint(self) -> str:
        return "halved"

    def encode(self, pixels: Tensor, **_: Any) -> Tensor:
        pooled = torch.nn.functional.avg_pool2d(pixels, 8)
        return pooled.repeat(1, 2, 1, 1)


def model(name: str = "parallel") -> tuple[Architecture, Condition, Tensor]:
    """Return an architecture of `ROWS` as if it had been trained, a condition of two images, and noise."""
    architecture = with_random_weights(ROWS[name].build(base()).eval())
    encoded = architecture.encode(images("reference"), images("target"), Halved())
    return architecture, condition_of(encoded), normal(tuple(encoded.clean.shape), "noise")


def draw(architecture: Architecture, condition: Condition, noise: Tensor, steps: int = STEPS, **given: Any) -> Tensor:
    strength = given.pop("reference_strength", None)
    settings = SamplerSettings(num_inference_steps=steps, **given)
    return sample(architecture, condition, NULL, noise, settings, NoShift(), reference_strength=strength)


def evaluations(module: torch.nn.Module) -> list[int]:
    """Return a list that gets the batch size of each evaluation of `module`, a feed-forward layer without a cache."""
    seen: list[int] = []
    module.register_forward_pre_hook(lambda _, given: seen.append(given[0].shape[0]))
    return seen


# --- What is saved, and what it changes.


@pytest.mark.parametrize("batch_passes", [False, True])
@pytest.mark.parametrize("cache", NEVER)
@pytest.mark.parametrize("name", ROWS)
def test_a_cache_that_skips_nothing_changes_nothing(name: str, cache: str, batch_passes: bool) -> None:
    architecture, condition, noise = model(name)
    given = {"steps": NEVER[cache], "batch_passes": batch_passes, "guidance_start": 0, **GUIDED}
    expected = draw(architecture, condition, noise, **given)
    if name.startswith("controlnet") and cache.startswith("first_block"):
        with pytest.raises(StepCacheError, match=r"count twice; choose taylor_seer"):
            architecture.use_step_cache(StepCache.parse(cache))
        return
    architecture.use_step_cache(StepCache.parse(cache))
    torch.testing.assert_close(draw(architecture, condition, noise, **given), expected, rtol=0, atol=2e-5)


def test_the_first_block_decides_whether_the_others_run() -> None:
    architecture, condition, noise = model()
    first = evaluations(architecture.transformer.transformer_blocks[0].ff)
    last = evaluations(architecture.transformer.single_transformer_blocks[0].proj_mlp)
    architecture.use_step_cache(StepCache.parse("first_block:1e9"))
    draw(architecture, condition, noise)
    assert first == [1] * 2 * STEPS  # each image by itself
    assert last == [1, 1]


@pytest.mark.parametrize(("interval", "computed"), [(2, [0, 1, 2, 4, 6, 8]), (5, [0, 1, 2, 4, 9])])
def test_the_interval_says_which_steps_run_blocks(interval: int, computed: list[int]) -> None:
    architecture, condition, noise = model()
    ran = evaluations(architecture.transformer.single_transformer_blocks[0].proj_mlp)
    architecture.use_step_cache(StepCache.parse(f"taylor_seer_lite:{interval}"))
    draw(architecture, condition, noise, steps=10)
    assert ran == [2] * len(computed)


def test_attention_alone_is_extrapolated_inside_of_blocks() -> None:
    architecture, condition, noise = model()
    block = architecture.transformer.transformer_blocks[0]
    attention, feed_forward = evaluations(block.attn.to_out[0]), evaluations(block.ff)
    architecture.use_step_cache(StepCache.parse("taylor_seer:5"))
    draw(architecture, condition, noise)
    assert (len(attention), len(feed_forward)) == (4, STEPS)


def test_another_cache_takes_the_place_of_the_first() -> None:
    architecture, condition, noise = model()
    architecture.use_step_cache(StepCache.parse("taylor_seer_lite"))
    architecture.use_step_cache(StepCache.parse("first_block:1e-12"))
    expected = draw(*model())
    torch.testing.assert_close(draw(architecture, condition, noise), expected, rtol=0, atol=2e-5)


# --- Images, passes and conditions are kept apart.


@pytest.mark.parametrize("name", ["parallel", "reference_tokens-separate_pass"])
@pytest.mark.parametrize("cache", ["first_block:0.3", "taylor_seer:2", "taylor_seer_lite:2"])
def test_an_image_depends_neither_on_those_before_it_nor_on_its_neighbours(name: str, cache: str) -> None:
    architecture, condition, noise = model(name)
    plain = draw(architecture, condition, noise, **GUIDED)
    architecture.use_step_cache(StepCache.parse(cache))
    both = draw(architecture, condition, noise, **GUIDED)
    assert not torch.allclose(both, plain, atol=1e-4), "nothing was skipped"

    def stopped(index: int, canvas: Tensor) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        sample(architecture, condition, NULL, 2 * noise, SamplerSettings(STEPS), NoShift(), stopped)
    for row in range(2):
        part = slice(row, row + 1)
        alone = draw(architecture, condition.rows(part), noise[part], **GUIDED)
        torch.testing.assert_close(both[part], alone, rtol=0, atol=2e-5)


@pytest.mark.parametrize("cache", ["first_block:0.3", "taylor_seer:2", "taylor_seer_lite:2"])
def test_each_pass_of_true_guidance_has_a_cache_of_its_own(cache: str) -> None:
    # Held against one transformer a pass, each with diffusers' cache in diffusers' own use.
    architecture, condition, noise = model()
    condition, noise = condition.rows(slice(0, 1)), noise[:1]
    passes = {2.0: condition, -1.0: condition.with_text(NULL)}
    networks = {factor: copy.deepcopy(architecture) for factor in passes}
    for network in networks.values():
        StepCache.parse(cache).enable(network.transformer)
    times, canvas = sampling_times(STEPS, NoShift()(1)), noise
    with torch.no_grad():
        for index in range(STEPS):
            velocity = torch.zeros_like(canvas)
            for factor, given in passes.items():
                with networks[factor].transformer.cache_context("alone"):
                    velocity += factor * networks[factor](canvas, times[index].expand(1), given, {})
            canvas = euler_step(canvas, velocity, float(times[index]), float(times[index + 1]))
    architecture.use_step_cache(StepCache.parse(cache))
    drawn = draw(architecture, condition, noise, text_guidance=2.0, guidance_start=0, batch_passes=False)
    torch.testing.assert_close(drawn, canvas, rtol=0, atol=2e-5)


def test_another_strength_of_the_reference_starts_again() -> None:
    architecture, condition, noise = model()
    last = evaluations(architecture.transformer.single_transformer_blocks[0].proj_mlp)
    architecture.use_step_cache(StepCache.parse("first_block:1e9"))
    draw(architecture, condition, noise, reference_strength=lambda index: float(index < 3))
    assert len(last) == 2 * 2


def test_nothing_is_kept_after_the_last_step() -> None:
    architecture, condition, noise = model()
    architecture.use_step_cache(StepCache.parse("taylor_seer"))
    draw(architecture, condition, noise)
    hook = architecture.transformer.transformer_blocks[0].attn._diffusers_hook.get_hook("taylorseer_cache")
    assert hook.state_manager._state_cache == {}


# --- What is refused.


@pytest.mark.parametrize("text", ["first_block:0.05", "taylor_seer:5", "taylor_seer_lite:3"])
def test_a_cache_is_read_as_it_is_written(text: str) -> None:
    assert str(StepCache.parse(text)) == text
    kind = text.partition(":")[0]
    assert StepCache.parse(kind).kind == kind


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("mag", "step_cache=mag is unknown; choose one of first_block, taylor_seer, taylor_seer_lite"),
        ("", "step_cache= is unknown"),
        ("first_block:", "'' is no number; give first_block:NUMBER, or first_block"),
        ("first_block:a", "'a' is no number"),
        ("first_block:0", "step_cache=first_block:0: the threshold must be a number above 0"),
        ("first_block:nan", "the threshold must be a number above 0"),
        ("first_block:inf", "the threshold must be a number above 0"),
        ("taylor_seer:1", "the interval must be a whole number of at least 2 steps"),
        ("taylor_seer_lite:2.5", "step_cache=taylor_seer_lite:2.5: the interval must be a whole number"),
        ("taylor_seer:inf", "the interval must be a whole number"),
        ("taylor_seer:nan", "the interval must be a whole number"),
    ],
)
def test_what_is_no_cache_is_refused_with_the_remedy(text: str, message: str) -> None:
    with pytest.raises(StepCacheError, match=message.replace("(", r"\(")):
        StepCache.parse(text)
