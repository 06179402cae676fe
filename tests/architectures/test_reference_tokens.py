"""The reference's separate pass is exact when kept, independent of text and noise, and trained through."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from diffusers import FluxTransformer2DModel
from support.models.architecture_rows import BATCH, base, configured, with_random_weights
from torch import Tensor

from dsd_lightning.architectures.base import Architecture
from dsd_lightning.architectures.reference_tokens import ReferenceTokens
from dsd_lightning.flux import tokens
from dsd_lightning.flux.reference_attention import attach_reference_attention
from dsd_lightning.objective import frame_losses
from dsd_lightning.pairs import TARGET, Condition, Encoded, TextEmbeddings
from dsd_lightning.randomness import normal
from dsd_lightning.rectified_flow import NoShift
from dsd_lightning.sampler import SamplerSettings, sample

NOISY, CLEAN = normal((BATCH, 6, 4, 4), "noisy"), normal((BATCH, 6, 4, 4), "clean")
TIMES = torch.tensor([0.75, 0.25])
TEXT = TextEmbeddings(normal((BATCH, 5, 16), "text"), normal((BATCH, 8), "pooled"))
CONDITION = Condition(TEXT, torch.full((BATCH,), 1.0), {"latents": normal((BATCH, 6, 4, 4), "reference")})


def separate(**settings: Any) -> Architecture:
    return with_random_weights(configured("reference_tokens", separate_pass=True, **settings)(base()))


def assert_kept_alike(left: Any, right: Any) -> None:
    assert left["kept"].keys() == right["kept"].keys()
    for index, both in left["kept"].items():
        assert all(torch.equal(*each) for each in zip(both, right["kept"][index], strict=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_keeping_the_reference_changes_no_bit_of_a_sample(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    architecture = with_random_weights(configured("reference_tokens", separate_pass=True)(base(dtype)))
    passes = []
    original = ReferenceTokens._reference_pass
    monkeypatch.setattr(ReferenceTokens, "_reference_pass", lambda *a: passes.append(1) or original(*a))

    def drawn() -> Tensor:
        passes.clear()
        no_text = TextEmbeddings(torch.zeros(1, 5, 16), torch.zeros(1, 8))
        settings = SamplerSettings(5, image_guidance=1.5, text_guidance=2.5, guidance_start=2, batch_passes=False)
        return sample(architecture, CONDITION, no_text, NOISY.to(dtype), settings, NoShift())

    kept = drawn()
    assert len(passes) == 3  # one for each prediction of the guidance
    monkeypatch.setattr(architecture, "prepare", lambda condition: {})
    assert torch.equal(drawn(), kept)
    assert len(passes) == 5 + 2 * 3


def test_the_reference_pass_sees_the_reference_alone() -> None:
    architecture = separate()
    kept = architecture.prepare(CONDITION)
    other_text = TextEmbeddings(normal((BATCH, 7, 16), "other"), normal((BATCH, 8), "other pooled"))
    assert_kept_alike(architecture.prepare(CONDITION.with_text(other_text)), kept)
    other = replace(CONDITION, reference={"latents": normal((BATCH, 6, 4, 4), "another")})
    for index, (_, value) in architecture.prepare(other)["kept"].items():
        assert (value - kept["kept"][index][1]).abs().max() > 1e-3


@torch.no_grad()
def test_a_separate_pass_is_joint_attention_in_which_the_reference_looks_at_itself_alone() -> None:
    # diffusers' own processors, all tokens in one pass. The timestep and the pooled text, which stock FLUX has once a
    # sample, are those of the reference's pass.
    time, pooled = 0.25, torch.zeros(BATCH, 8)
    condition = replace(CONDITION, text=TextEmbeddings(TEXT.sequence, pooled))
    architecture = separate(reference_timestep=time)
    predicted = architecture(NOISY, torch.full((BATCH,), time), condition)

    joint = with_random_weights(configured("reference_tokens")(base()))
    length = TEXT.sequence.shape[1] + 4  # text and noisy tokens, before the reference's 4
    mask = torch.ones(length + 4, length + 4, dtype=torch.bool)
    mask[length:, :length] = False
    ids = tokens.image_ids(4, 4, device=NOISY.device)
    sequence = torch.cat([tokens.pack(NOISY), tokens.pack(CONDITION.reference["latents"])], dim=1)
    shifted = ids + torch.tensor([1.0, 0.0, 0.0])
    expected = joint._transform(
        sequence,
        torch.full((BATCH,), time),
        condition,
        torch.cat([ids, shifted]),
        joint_attention_kwargs={"attention_mask": mask[None, None]},
    )
    torch.testing.assert_close(predicted, tokens.unpack(expected[:, :4], 4, 4), atol=1e-5, rtol=1e-5)
    # Without the mask it is another function.
    assert (joint(NOISY, torch.full((BATCH,), time), condition) - predicted).abs().max() > 1e-3


@torch.no_grad()
def test_appended_tokens_are_stock_flux_on_a_longer_sequence() -> None:
    architecture = configured("reference_tokens")(base())
    height, width = 4, 4
    rows = torch.tensor([[0.0, r, c] for r in range(2) for c in range(2)])
    expected = base()(
        hidden_states=torch.cat([tokens.pack(NOISY), tokens.pack(CONDITION.reference["latents"])], dim=1),
        encoder_hidden_states=TEXT.sequence,
        pooled_projections=TEXT.pooled,
        timestep=TIMES,
        img_ids=torch.cat([rows, rows + torch.tensor([1.0, 0.0, 0.0])]),
        txt_ids=torch.zeros(5, 3),
        guidance=CONDITION.guidance,
        return_dict=False,
    )[0][:, :4]
    predicted = architecture(NOISY, TIMES, CONDITION)
    torch.testing.assert_close(predicted, tokens.unpack(expected, height, width), atol=1e-6, rtol=0)


@torch.no_grad()
@pytest.mark.parametrize("separate_pass", [False, True])
def test_the_reference_may_be_of_another_size(separate_pass: bool) -> None:
    architecture = with_random_weights(configured("reference_tokens", separate_pass=separate_pass)(base()))
    larger = replace(CONDITION, reference={"latents": normal((BATCH, 6, 6, 8), "larger")})
    assert architecture(NOISY, TIMES, larger).shape == NOISY.shape


@torch.no_grad()
@pytest.mark.parametrize("separate_pass", [False, True])
def test_the_shift_of_the_position_ids_matters(separate_pass: bool) -> None:
    shifted = [
        with_random_weights(configured("reference_tokens", separate_pass=separate_pass, id_shift=shift)(base()))
        for shift in ([1, 0, 0], [0, 0, 2])
    ]
    left, right = (each(NOISY, TIMES, CONDITION) for each in shifted)
    assert (left - right).abs().max() > 1e-4


def gradients(architecture: Architecture) -> dict[str, Tensor]:
    encoded = Encoded(CLEAN, CONDITION.reference)
    architecture.zero_grad()
    frame_losses(architecture, encoded, CONDITION, NOISY, TIMES, {TARGET: 1.0}).total.backward()
    return {name: parameter.grad.clone() for name, parameter in architecture.trainable()}


def test_training_goes_through_the_reference_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    architecture = separate()
    through = gradients(architecture)
    original = architecture.prepare

    def detached(condition: Condition) -> dict[str, Any]:
        kept = original(condition)["kept"]
        return {"kept": {index: tuple(each.detach() for each in both) for index, both in kept.items()}}

    monkeypatch.setattr(architecture, "prepare", detached)
    around = gradients(architecture)
    moved = [name for name, gradient in through.items() if not torch.allclose(gradient, around[name], atol=1e-6)]
    for layer in ("transformer_blocks.0.attn.to_v", "single_transformer_blocks.0.attn.to_k"):
        assert any(layer in name for name in moved), layer


def test_recomputed_blocks_give_the_same_gradients() -> None:
    stored = gradients(separate())
    architecture = separate()
    architecture.transformer.enable_gradient_checkpointing()
    architecture.train()
    for name, gradient in gradients(architecture).items():
        torch.testing.assert_close(gradient, stored[name], atol=1e-6, rtol=1e-5)


@torch.no_grad()
def test_without_a_reference_the_processor_is_diffusers_own() -> None:
    def velocity(transformer: FluxTransformer2DModel) -> Tensor:
        ids = tokens.image_ids(4, 4, device=NOISY.device)
        arguments = {"encoder_hidden_states": TEXT.sequence, "pooled_projections": TEXT.pooled, "timestep": TIMES}
        return transformer(
            tokens.pack(NOISY),
            **arguments,
            img_ids=ids,
            txt_ids=tokens.text_ids(5, device=NOISY.device),
            guidance=CONDITION.guidance,
            return_dict=False,
        )[0]

    changed = base()
    attach_reference_attention(changed)
    assert torch.equal(velocity(changed), velocity(base()))


def test_the_bases_attention_kernel_is_kept() -> None:
    transformer = base()
    transformer.set_attention_backend("_native_math")
    before = transformer.transformer_blocks[0].attn.processor._attention_backend
    assert before is not None
    attach_reference_attention(transformer)
    for block in (*transformer.transformer_blocks, *transformer.single_transformer_blocks):
        assert block.attn.processor._attention_backend == before
    transformer.set_attention_backend("native")
    assert transformer.transformer_blocks[0].attn.processor._attention_backend != before


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"reference_timestep": 1000.0}, r"arch\.reference_timestep=1000\.0.*\[0, 1\]"),
        ({"id_shift": [0, 1]}, r"arch\.id_shift=\[0, 1\].*three"),
    ],
)
def test_senseless_settings_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(Exception, match=message):
        configured("reference_tokens", **settings)(base())
