"""The pipeline accepts what diffusers' users give, in the fewest passes, and refuses what it cannot do."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from support.models.golden_pipeline import IMAGE, PROMPT, SIDE, STEPS, draw, noise, official
from torch import Tensor

from dsd_lightning.compute.finite import NonFiniteError
from dsd_lightning.pipeline import TwoFramePipeline
from dsd_lightning.sampler import SamplerSettings, evaluations

# --- Passes.


@pytest.mark.parametrize(
    ("image", "text", "start", "expected"),
    [
        (1.0, 1.0, 2, 4),
        (1.3, 1.0, 2, 2 + 2 * 3),
        (1.0, 2.0, 2, 2 + 2 * 2),  # needs no null pass
        (1.5, 1.5, 2, 2 + 2 * 2),  # the middle one cancels
        (1.3, 2.0, 2, 2 + 2 * 3),
        (1.3, 2.0, 0, 4 * 3),
        (1.3, 2.0, 9, 4),
        (0.0, 0.0, 0, 4),
    ],
)
@pytest.mark.parametrize("batched", [False, True])
def test_predictions_are_the_fewest_possible(
    image: float, text: float, start: int, expected: int, batched: bool
) -> None:
    rows: list[int] = []
    network = official().transformer.transformer
    hook = network.register_forward_pre_hook(
        lambda _, __, given: rows.append(given["hidden_states"].shape[0]), with_kwargs=True
    )
    guidance = {"image_guidance": image, "text_guidance": text, "guidance_start": start, "batch_passes": batched}
    draw(official(), **guidance)
    hook.remove()
    assert sum(rows) == expected == evaluations(SamplerSettings(STEPS, **guidance))
    assert len(rows) == (STEPS if batched else expected)


# --- What a user gives and gets.


def test_a_model_that_predicts_no_numbers_gives_a_message_and_no_black_image() -> None:
    pipeline = official("unmerged")
    weights = pipeline.transformer.transformer.proj_out
    with torch.no_grad():
        before = weights.bias.clone()
        weights.bias[0] = float("nan")
    try:
        with pytest.raises(NonFiniteError, match="holds NaN or infinite values; the weights are damaged"):
            draw(pipeline)
    finally:
        with torch.no_grad():
            weights.bias.copy_(before)


@pytest.mark.parametrize("name", ["guidance_scale", "image_guidance", "text_guidance"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_guidance_that_is_no_number_is_refused(name: str, value: float) -> None:
    with pytest.raises(ValueError, match=f"{name}={value} must be a finite number"):
        draw(official(), **{name: value})


def test_a_batch_is_its_images_one_by_one() -> None:
    images, prompts = [IMAGE, IMAGE.rotate(90, expand=True)], ["a hat", "a very large hat"]
    guidance = {"image_guidance": 1.3, "text_guidance": 2.0}
    both = draw(official(), image=images, prompt=prompts, latents=noise(0, 2), **guidance)
    for index in range(2):
        one = draw(
            official(), image=images[index], prompt=prompts[index], latents=noise(0, 2)[index : index + 1], **guidance
        )
        torch.testing.assert_close(both[index : index + 1], one, rtol=0, atol=1e-4)


def test_one_image_serves_several_prompts_and_each_may_be_used_several_times() -> None:
    latents = draw(
        official(),
        prompt=["a hat", "a coat"],
        num_images_per_prompt=2,
        generator=[torch.Generator().manual_seed(seed) for seed in (5, 6, 5, 6)],
    )
    assert latents.shape[0] == 4
    again = draw(official(), prompt="a coat", generator=torch.Generator().manual_seed(6))
    torch.testing.assert_close(latents[3:], again, rtol=0, atol=1e-4)


def test_embeddings_stand_for_prompts() -> None:
    text, null = official().encode_prompt([PROMPT]), official().encode_prompt(["blurred"])
    guidance = {"image_guidance": 1.3, "text_guidance": 2.0}
    latents = draw(
        official(),
        prompt=None,
        prompt_embeds=text.sequence,
        pooled_prompt_embeds=text.pooled,
        negative_prompt_embeds=null.sequence,
        negative_pooled_prompt_embeds=null.pooled,
        **guidance,
    )
    expected = draw(official(), negative_prompt="blurred", **guidance)
    torch.testing.assert_close(latents, expected, rtol=0, atol=1e-5)


def test_the_generator_samples_noise_and_before_it_the_condition_if_requested() -> None:
    mode = draw(official(), generator=torch.Generator().manual_seed(3))
    same = draw(official(), latents=official().draw_latents(1, None, None, torch.Generator().manual_seed(3)))
    assert torch.equal(mode, same)
    generator = torch.Generator().manual_seed(3)
    sampled = draw(official(), generator=generator, condition_sample="sample")
    order = torch.Generator().manual_seed(3)
    for _ in range(2):
        torch.randn((1, 4, SIDE // 8, SIDE // 4), generator=order)
    assert torch.equal(generator.get_state(), order.get_state()), "two canvases are sampled, and nothing else"
    assert (sampled - mode).abs().max() > 0.01
    torch.manual_seed(3)  # as the official code, which uses the global generator only
    assert torch.equal(draw(official(), generator=None, condition_sample="sample"), sampled)


def test_sizes_outputs_and_the_reconstructed_reference() -> None:
    given = {"image": IMAGE, "prompt": PROMPT, "num_inference_steps": 1, "height": 32, "width": 96}
    result = official()(**given, return_reference=True)
    assert [result.images[0].size, result.references[0].size] == [(96, 32), (96, 32)]
    array = official()(**given, output_type="np", generator=torch.Generator().manual_seed(0)).images
    assert array.shape == (1, 32, 96, 3)
    assert 0 <= array.min() < array.max() <= 1


def test_sizes_far_beyond_training_are_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    official().frame_size(96, 96)
    assert not caplog.text
    official().frame_size(112, 64)
    assert "distort" in caplog.text


def test_strength_of_the_reference_by_step() -> None:
    plain = draw(official())
    assert torch.equal(draw(official(), reference_strength=[(0, STEPS, 1.0)]), plain)
    # Without reference and with text: what image guidance 0 makes of the null reference under the same text.
    assert torch.equal(
        draw(official(), reference_strength=0.0), draw(official(), image=IMAGE.rotate(90), reference_strength=0.0)
    )
    late = draw(official(), reference_strength=[(2, 4, 0.5)])
    assert (late - plain).abs().max() > 1e-3


def test_a_callback_is_called_at_each_step_and_may_change_it_or_stop() -> None:
    calls: list[tuple[int, float]] = []

    def callback(pipe: TwoFramePipeline, step: int, time: float, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        calls.append((step, time))
        pipe._interrupt = step == 2
        return {"latents": torch.zeros_like(tensors["latents"])} if step == 2 else tensors

    latents = draw(official(), callback_on_step_end=callback)
    assert [step for step, _ in calls] == [0, 1, 2]
    assert calls[0][1] == pytest.approx(1000)
    assert not latents.any()
    assert torch.equal(draw(official(), callback_on_step_end=lambda *_: {}), draw(official()))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"prompt": None}, "give either a prompt"),
        ({"prompt_embeds": torch.zeros(1, 2, 32)}, "go together"),
        ({"latents": torch.zeros(1, 3, 16)}, r"latents are \[1, 3, 16\].*\[1, 32, 16\]"),
        ({"image": [IMAGE] * 2, "prompt": ["a"] * 3}, "2 given for a batch of 3"),
        ({"image": torch.zeros(3, 8, 8)}, r"\[3, 64, 64\]"),
        ({"height": 60}, "nearest is 64 x 64"),
        ({"image": None}, "reference image"),
        ({"num_inference_steps": 0}, "num_inference_steps=0"),
        ({"reference_strength": [(0, 9, 0.5)]}, "steps 0 to 9"),
        ({"generator": [torch.Generator()] * 2}, "a list of 2 for 1"),
    ],
)
def test_what_does_not_fit_is_refused(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        draw(official(), **given)
