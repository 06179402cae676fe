"""Sampling follows the velocity to its end, combines predictions as the official code does, and computes no others."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from support.models.toy_models import NULL_TEXT, Field, ToyTwoFrames, text_of
from torch import Tensor

from dsd_lightning.pairs import Condition, TextEmbeddings
from dsd_lightning.randomness import normal
from dsd_lightning.rectified_flow import FixedShift, NoShift, ResolutionShift, sampling_times
from dsd_lightning.sampler import SamplerSettings, Shift, evaluations, sample

SHAPE = (2, 4, 4, 8)
CLEAN, NOISE, REFERENCE = (normal(SHAPE, name) for name in ("clean", "noise", "reference"))
CONDITION = Condition(text_of(0.7), torch.full((2,), 3.5), {"canvas": REFERENCE})
STEPS = 5


def to_a_point(clean: Tensor) -> Field:
    """The exact velocity if all data is `clean`."""
    return lambda noisy, timestep, condition: (noisy - clean) / timestep[:, None, None, None]


def mixed(noisy: Tensor, timestep: Tensor, condition: Condition) -> Tensor:
    """A velocity that bends with the canvas, the time, the text and the reference."""
    text = condition.text.sequence.mean(dim=(1, 2)) + 2 * condition.text.pooled.mean(dim=1)
    shifted = noisy * (1 + timestep[:, None, None, None]) + text[:, None, None, None]
    return torch.tanh(shifted) + torch.sin(condition.reference["canvas"] + shifted)


UNSHIFTED = NoShift()


def draw(architecture: ToyTwoFrames, shift: Shift = UNSHIFTED, **settings: float) -> Tensor:
    return sample(
        architecture, CONDITION, NULL_TEXT, NOISE, SamplerSettings(num_inference_steps=STEPS, **settings), shift
    )


# --- Following the velocity.


@pytest.mark.parametrize("shift", [NoShift(), FixedShift(3.0), ResolutionShift()])
@pytest.mark.parametrize("steps", [1, 2, 28])
def test_the_velocity_to_a_point_leads_there(shift: Shift, steps: int) -> None:
    drawn = sample(
        ToyTwoFrames(to_a_point(CLEAN)), CONDITION, NULL_TEXT, NOISE, SamplerSettings(num_inference_steps=steps), shift
    )
    torch.testing.assert_close(drawn, CLEAN, atol=1e-4, rtol=0)


def test_times_are_those_of_the_whole_canvas() -> None:
    architecture = ToyTwoFrames(mixed)
    shift = ResolutionShift(base_tokens=4, max_tokens=64, base_mu=0.5, max_mu=1.15)
    draw(architecture, shift)
    expected = sampling_times(STEPS, shift(2 * 4))[:-1]  # a canvas of 4 x 8 latents has 2 x 4 tokens
    torch.testing.assert_close(torch.tensor([time for time, _, _ in architecture.evaluations]), expected)


def test_each_step_is_reported() -> None:
    seen: list[tuple[int, Tensor]] = []
    settings = SamplerSettings(num_inference_steps=STEPS)
    drawn = sample(
        ToyTwoFrames(to_a_point(CLEAN)),
        CONDITION,
        NULL_TEXT,
        NOISE,
        settings,
        NoShift(),
        lambda *step: seen.append(step),
    )
    assert [index for index, _ in seen] == list(range(STEPS))
    assert torch.equal(seen[-1][1], drawn)
    distances = [float((canvas - CLEAN).abs().mean()) for _, canvas in seen]
    assert distances == sorted(distances, reverse=True)


def test_noise_is_left_as_it_was_and_no_gradient_is_kept() -> None:
    before = NOISE.clone()
    weight = torch.ones((), requires_grad=True)
    drawn = draw(ToyTwoFrames(lambda noisy, timestep, condition: weight * noisy), image_guidance=2.0)
    assert torch.equal(before, NOISE)
    assert not drawn.requires_grad


# --- Guidance.


def official(image_guidance: float, text_guidance: float, start: int) -> Tensor:
    """The official pipeline's loop, always in three passes (`pipeline.py`, its names in the comments)."""
    no_text = CONDITION.with_text(text_of(0.0))
    nothing = replace(no_text, reference={"canvas": torch.zeros(SHAPE)})
    times, canvas = sampling_times(STEPS, 0.0), NOISE
    for index in range(STEPS):
        timestep = times[index].expand(2)
        full = mixed(canvas, timestep, CONDITION)  # noise_pred
        if index >= start:
            uncond = mixed(canvas, timestep, nothing)  # neg_noise_pred: zero latents
            image = mixed(canvas, timestep, no_text)  # noise_pred_i
            full = uncond + image_guidance * (image - uncond) + text_guidance * (full - image)
        canvas = canvas + (times[index + 1] - times[index]) * full
    return canvas


@pytest.mark.parametrize("start", [0, 2, STEPS])
@pytest.mark.parametrize(
    ("image", "text"), [(1.0, 1.0), (1.5, 2.5), (2.0, 2.0), (3.0, 1.0), (1.0, 3.0), (0.0, 0.0), (0.5, 1.0), (0.0, 1.0)]
)
def test_guidance_is_the_official_formula(image: float, text: float, start: int) -> None:
    drawn = draw(ToyTwoFrames(mixed), image_guidance=image, text_guidance=text, guidance_start=start)
    torch.testing.assert_close(drawn, official(image, text, start), atol=1e-5, rtol=0)


@pytest.mark.parametrize(("image", "text"), [(3.0, 1.0), (1.0, 3.0)])
def test_each_guidance_works_alone(image: float, text: float) -> None:
    # In the official code, text guidance does nothing without image guidance, although its help says it does.
    plain, guided = draw(ToyTwoFrames(mixed)), draw(ToyTwoFrames(mixed), image_guidance=image, text_guidance=text)
    assert (guided - plain).abs().max() > 0.1


FULL, REFERENCE_ONLY, NULL = (True, True), (False, True), (False, False)


@pytest.mark.parametrize(
    ("image", "text", "expected"),
    [
        (1.0, 1.0, {FULL}),
        (2.0, 2.0, {NULL, FULL}),  # the middle pass cancels
        (1.0, 3.0, {REFERENCE_ONLY, FULL}),
        (3.0, 1.0, {NULL, REFERENCE_ONLY, FULL}),
        (1.5, 2.5, {NULL, REFERENCE_ONLY, FULL}),
        (0.0, 0.0, {NULL}),
        (1.0, 0.0, {REFERENCE_ONLY}),
    ],
)
@pytest.mark.parametrize("start", [0, 2, STEPS])
def test_only_the_passes_that_matter_are_computed(
    image: float, text: float, expected: set[tuple[bool, bool]], start: int
) -> None:
    architecture = ToyTwoFrames(mixed)
    draw(architecture, image_guidance=image, text_guidance=text, guidance_start=start, batch_passes=False)
    times = sampling_times(STEPS, 0.0)[:-1]
    for index, time in enumerate(times.tolist()):
        passes = [seen[1:] for seen in architecture.evaluations if seen[0] == pytest.approx(time)]
        assert sorted(passes) == sorted(expected if index >= start else {FULL})
    distinct = {seen[1:] for seen in architecture.evaluations}
    assert architecture.preparations == len(distinct), "what a condition needs is prepared once an image"


@pytest.mark.parametrize(("image", "text"), [(1.5, 2.5), (2.0, 2.0), (1.0, 3.0)])
def test_passes_in_one_batch_are_the_same_passes(image: float, text: float) -> None:
    guidance = {"image_guidance": image, "text_guidance": text}
    together = ToyTwoFrames(mixed)
    drawn = draw(together, **guidance, batch_passes=True)
    torch.testing.assert_close(drawn, draw(ToyTwoFrames(mixed), **guidance, batch_passes=False), atol=1e-6, rtol=0)
    assert len(together.evaluations) == STEPS
    assert together.preparations == 2, "one without guidance, one with it"


def test_evaluations_are_counted_as_they_are_made() -> None:
    for start, image, text in ((0, 1.5, 2.5), (2, 2.0, 2.0), (9, 3.0, 1.0)):
        architecture, guidance = ToyTwoFrames(mixed), {"image_guidance": image, "text_guidance": text}
        draw(architecture, **guidance, guidance_start=start, batch_passes=False)
        settings = SamplerSettings(STEPS, **guidance, guidance_start=start)
        assert len(architecture.evaluations) == evaluations(settings)


def test_texts_of_unequal_length_are_read_one_after_the_other() -> None:
    longer = TextEmbeddings(torch.zeros(1, 7, 4), torch.zeros(1, 4))
    settings = SamplerSettings(STEPS, text_guidance=2.0, guidance_start=0, batch_passes=True)
    architecture = ToyTwoFrames(mixed)
    sample(architecture, CONDITION, longer, NOISE, settings, UNSHIFTED)
    assert len(architecture.evaluations) == 2 * STEPS


def test_a_returned_canvas_replaces_the_step() -> None:
    settings = SamplerSettings(STEPS)
    field = to_a_point(CLEAN)
    drawn = sample(ToyTwoFrames(field), CONDITION, NULL_TEXT, NOISE, settings, UNSHIFTED, lambda *_: REFERENCE)
    assert torch.equal(drawn, REFERENCE)


def test_strength_of_the_reference() -> None:
    seen: list[float] = []

    def field(noisy: Tensor, timestep: Tensor, condition: Condition) -> Tensor:
        seen.append(float((condition.reference["canvas"] / REFERENCE).mean()))
        return noisy

    settings = SamplerSettings(3)
    strengths = [1.0, 0.0, 0.5]
    sample(
        ToyTwoFrames(field),
        CONDITION,
        NULL_TEXT,
        NOISE,
        settings,
        UNSHIFTED,
        reference_strength=lambda index: strengths[index],
    )
    assert seen == pytest.approx(strengths)


@pytest.mark.parametrize("settings", [{"num_inference_steps": 0}, {"image_guidance": -1.0}, {"text_guidance": -0.5}])
def test_senseless_settings_are_refused(settings: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=f"{next(iter(settings))}="):
        SamplerSettings(**settings)  # type: ignore[arg-type]
