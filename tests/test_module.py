"""A training step drops, weighs and keys as configured; validation losses show whether the reference is used."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from support.tiny_run import Run, TextOnly, make_architecture, make_module
from torch import Tensor
from transformers import AutoTokenizer, CLIPTextModel, T5EncoderModel

import dsd_lightning.module
from dsd_lightning.flux.text import TextEncoder
from dsd_lightning.module import VALIDATION_BINS, DiffusionSelfDistillation, Dropout
from dsd_lightning.pairs import REFERENCE, TARGET, Condition, Encoded, PairBatch, TextEmbeddings
from dsd_lightning.randomness import normal, uniform
from dsd_lightning.rectified_flow import FixedShift, LogitNormal

SHIPPED = Path(__file__).parents[1] / "assets" / "tiny-flux"


def batch_of(*keys: str, epoch: int = 0) -> PairBatch:
    """Return encoded pairs that depend on their keys alone."""

    def stacked(shape: tuple[int, ...], what: str) -> Tensor:
        return torch.stack([normal(shape, key, what) for key in keys])

    return PairBatch(
        keys=list(keys),
        epochs=[epoch] * len(keys),
        prompts=[""] * len(keys),
        encoded=Encoded(stacked((4, 4, 8), "clean"), {"canvas": stacked((4, 4, 8), "reference")}),
        text=TextEmbeddings(stacked((3, 16), "text"), stacked((8,), "pooled")),
    )


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """Note what the module hands to the objective."""
    calls: list[dict[str, Any]] = []
    compute = dsd_lightning.module.frame_losses
    names = ("architecture", "encoded", "condition", "noise", "timestep", "frame_weights", "target_weights")

    def noting(*arguments: Any) -> Any:
        calls.append(dict(zip(names, arguments, strict=False)))
        return compute(*arguments)

    monkeypatch.setattr(dsd_lightning.module, "frame_losses", noting)
    return calls


# --- Dropout.


def test_conditions_are_dropped_at_their_odds() -> None:
    dropout, draws = Dropout(text=0.05, reference=0.1, both=0.2), 2000
    kept = Counter(dropout.keeps((i + 0.5) / draws) for i in range(draws))
    expected = {(False, True): 0.05, (True, False): 0.1, (False, False): 0.2, (True, True): 0.65}
    for keeps, odds in expected.items():
        assert kept[keeps] / draws == pytest.approx(odds, abs=1e-3)
    assert Dropout().keeps(0.0) == (True, True)
    assert Dropout(both=1.0).keeps(1 - 2**-53) == (False, False)


@pytest.mark.parametrize("odds", [{"text": -0.1}, {"text": 0.5, "reference": 0.4, "both": 0.2}])
def test_senseless_odds_are_refused(odds: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="odds >= 0 with a sum <= 1"):
        Dropout(**odds)


def test_a_sample_loses_what_its_own_draw_says(seen: list[dict[str, Any]]) -> None:
    module, batch = make_module(), batch_of(*(f"pair-{i}" for i in range(40)), epoch=3)
    module.dropout = Dropout(0.25, 0.25, 0.25)
    module.losses(batch)
    condition: Condition = seen[0]["condition"]
    assert batch.text is not None
    assert batch.encoded is not None
    null = module.null_text(batch.text)
    kinds = set()
    for i, key in enumerate(batch.keys):
        keep_text, keep_reference = module.dropout.keeps(uniform(module.seed, 3, key, "dropout"))
        kinds.add((keep_text, keep_reference))
        text = (batch.text.sequence[i], batch.text.pooled[i]) if keep_text else (null.sequence[0], null.pooled[0])
        assert torch.equal(condition.text.sequence[i], text[0])
        assert torch.equal(condition.text.pooled[i], text[1])
        reference = batch.encoded.reference["canvas"][i]
        assert torch.equal(condition.reference["canvas"][i], reference if keep_reference else torch.zeros(4, 4, 8))
    assert len(kinds) == 4


# --- Draws keyed by the sample.


def test_timesteps_are_the_densitys_shifted_over_the_whole_canvas(seen: list[dict[str, Any]]) -> None:
    module, batch = make_module(), batch_of("a", "b", "c", epoch=2)
    module.density, module.shift = LogitNormal(0.3, 0.8), FixedShift(3.0)
    module.losses(batch)
    draws = torch.tensor([uniform(module.seed, 2, key, "timestep") for key in batch.keys])
    plain = torch.distributions.Normal(0.3, 0.8).icdf(draws).sigmoid()
    expected = FlowMatchEulerDiscreteScheduler().time_shift(math.log(3.0), 1.0, plain)
    torch.testing.assert_close(seen[0]["timestep"], expected, atol=1e-5, rtol=0)


def test_the_shift_is_told_the_tokens_of_all_frames(monkeypatch: pytest.MonkeyPatch) -> None:
    module, counts = make_module(), []
    module.shift = lambda tokens: counts.append(tokens) or 0.0  # type: ignore[assignment]
    module.losses(batch_of("a"))
    assert counts == [2 * 4]  # latents of 4 x 8 make 2 x 4 tokens


def test_a_samples_draws_depend_on_seed_epoch_and_key_alone(seen: list[dict[str, Any]]) -> None:
    module = make_module()
    module.dropout = Dropout()
    module.losses(batch_of("a", "b", "c"))
    module.losses(batch_of("c", "x", "a"))  # other places, other company
    module.losses(batch_of("a", epoch=1))
    module.seed = 1
    module.losses(batch_of("a"))
    first, again, next_epoch, next_seed = seen
    for drawn in ("noise", "timestep"):
        assert torch.equal(first[drawn][0], again[drawn][2])
        assert torch.equal(first[drawn][2], again[drawn][0])
        assert not torch.equal(first[drawn][0], first[drawn][1])
        assert not torch.equal(first[drawn][0], next_epoch[drawn][0])
        assert not torch.equal(first[drawn][0], next_seed[drawn][0])


def test_the_guidance_value_is_the_configured_one(seen: list[dict[str, Any]]) -> None:
    module = make_module()
    module.guidance_scale = 2.5
    module.losses(batch_of("a", "b"))
    assert seen[0]["condition"].guidance.tolist() == [2.5, 2.5]


def test_a_range_of_guidance_is_drawn_from_for_each_sample(seen: list[dict[str, Any]]) -> None:
    module = make_module()
    module.architecture.guidance_range = (1.0, 4.0)
    module.losses(batch_of(*"abcdefgh"))
    module.losses(batch_of("b", "x"))
    first, again = (each["condition"].guidance for each in seen)
    assert first.min() >= 1.0
    assert first.max() <= 4.0
    assert len(set(first.tolist())) == 8
    assert again[0] == first[1]


# --- Encoding what a batch does not bring along.


@pytest.fixture(scope="module")
def text_encoder() -> TextEncoder:
    return TextEncoder(
        CLIPTextModel.from_pretrained(SHIPPED / "text_encoder"),
        AutoTokenizer.from_pretrained(SHIPPED / "tokenizer"),
        T5EncoderModel.from_pretrained(SHIPPED / "text_encoder_2"),
        AutoTokenizer.from_pretrained(SHIPPED / "tokenizer_2"),
        sequence_length=8,
    )


def test_images_and_words_are_encoded_by_architecture_and_text_encoder(text_encoder: TextEncoder) -> None:
    module = make_module()
    module.text_encoder = text_encoder
    reference, target = (normal((2, 3, 8, 8), name).clamp(-1, 1) for name in (REFERENCE, TARGET))
    encoded, text = module.encode(
        PairBatch(["a", "b"], [0, 0], ["a red star", "a blue heart"], reference=reference, target=target)
    )
    expected = module.architecture.encode(reference, target, module.codec)
    assert torch.equal(encoded.clean, expected.clean)
    assert torch.equal(encoded.reference["canvas"], expected.reference["canvas"])
    assert torch.equal(text.sequence, text_encoder.encode(["a red star", "a blue heart"]).sequence)


def test_no_text_is_the_empty_prompt_in_the_length_and_dtype_of_the_others(text_encoder: TextEncoder) -> None:
    module = make_module()
    module.text_encoder = text_encoder
    like = TextEmbeddings(torch.zeros(5, 12, 64, dtype=torch.bfloat16), torch.zeros(5, 64, dtype=torch.bfloat16))
    null, expected = module.null_text(like), text_encoder.encode([""], sequence_length=12)
    assert torch.equal(null.sequence, expected.sequence.bfloat16())
    assert torch.equal(null.pooled, expected.pooled.bfloat16())


# --- What is logged.


def test_both_frames_losses_are_logged_beside_their_weighted_mean(tmp_path: Path) -> None:
    logged = Run(tmp_path, 4).fit().trainer.callback_metrics
    frames = {name: float(logged[f"train/loss_{name}"]) for name in (REFERENCE, TARGET)}
    assert float(logged["train/loss"]) == pytest.approx((0.5 * frames[REFERENCE] + frames[TARGET]) / 1.5, rel=1e-5)
    kinds = ("right", "shuffled", "null")
    bins = {f"val/loss_{kind}_bin{i}" for kind in kinds for i in range(VALIDATION_BINS)}
    expected = bins | {f"val/loss_{name}" for name in (REFERENCE, TARGET, *kinds)}
    assert {name for name in logged if name.startswith("val/loss_")} == expected


@torch.no_grad()
def validated(module: DiffusionSelfDistillation) -> Mapping[str, float]:
    for i in range(2):
        batch = batch_of(f"{i}a", f"{i}b")
        if REFERENCE not in module.architecture.frames and batch.encoded is not None:
            batch = replace(batch, encoded=Encoded(batch.encoded.clean, {}))
        module.validation_step(batch, i)
    by_name = {
        name.removeprefix("val/loss_"): float(value) for name, value in module.validation_losses.compute().items()
    }
    module.validation_losses.reset()
    return by_name


def use_reference(module: DiffusionSelfDistillation) -> None:
    with torch.no_grad():
        module.architecture.transformer.x_embedder.c_embedder.weight.normal_(generator=torch.Generator().manual_seed(0))


def test_a_model_that_ignores_the_reference_validates_alike_with_any() -> None:
    # The reference embedder starts at zero.
    losses = validated(make_module())
    assert losses["right"] == losses["shuffled"] == losses["null"] == losses[TARGET]


def test_a_model_that_uses_the_reference_does_not() -> None:
    module = make_module()
    use_reference(module)
    losses = validated(module)
    assert len({losses["right"], losses["shuffled"], losses["null"]}) == 3
    assert losses["right"] == losses[TARGET]
    for kind in ("right", "shuffled", "null"):
        bins = [losses[f"{kind}_bin{i}"] for i in range(VALIDATION_BINS)]
        assert losses[kind] == pytest.approx(sum(bins) / VALIDATION_BINS, rel=1e-5)


def test_validation_is_the_same_each_time_and_drops_nothing() -> None:
    module = make_module()
    use_reference(module)
    module.dropout = Dropout(both=1.0)
    again = make_module()
    use_reference(again)
    assert validated(module) == validated(module) == validated(again)


def test_one_frame_without_a_reference_validates_the_target_alone() -> None:
    losses = validated(make_module(make_architecture(TextOnly)))
    assert REFERENCE not in losses
    assert losses["right"] == losses["shuffled"] == losses["null"] == losses[TARGET]


# --- Sampling.


def test_a_drawn_sample_does_not_depend_on_its_batch() -> None:
    module = make_module()
    use_reference(module)
    together, alone = module.generate(batch_of("a", "b")), module.generate(batch_of("b", epoch=5))
    assert list(together) == [REFERENCE, TARGET]
    for name, frames in together.items():
        assert frames.shape == (2, 3, 4, 4)
        assert frames.abs().max() <= 1
        torch.testing.assert_close(frames[1:], alone[name], atol=1e-5, rtol=0)
    assert not torch.equal(together[TARGET][0], together[TARGET][1])
