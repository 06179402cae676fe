"""Prompts are embedded as FLUX's pipeline embeds them, and a cached embedding equals a fresh one."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
import torch
from diffusers import FluxPipeline
from transformers import AutoTokenizer, CLIPTextModel, T5EncoderModel

from dsd_lightning.flux.text import NULL_PROMPT, TextEncoder
from dsd_lightning.pairs import TextEmbeddings

SHIPPED = Path(__file__).parents[2] / "assets" / "tiny-flux"
PROMPTS = ["this character, large, on the left, on a plain green background", "a red star with a hat", "a red star"]
LENGTH = 24


@pytest.fixture(scope="module")
def parts() -> dict[str, object]:
    return {
        "clip": CLIPTextModel.from_pretrained(SHIPPED / "text_encoder"),
        "clip_tokenizer": AutoTokenizer.from_pretrained(SHIPPED / "tokenizer"),
        "t5": T5EncoderModel.from_pretrained(SHIPPED / "text_encoder_2"),
        "t5_tokenizer": AutoTokenizer.from_pretrained(SHIPPED / "tokenizer_2"),
    }


def encoder(parts: dict[str, object], cache_size: int = 0) -> TextEncoder:
    return TextEncoder(**parts, sequence_length=LENGTH, cache_size=cache_size)  # type: ignore[arg-type]


def assert_close(left: TextEmbeddings, right: TextEmbeddings, tolerance: float = 1e-5) -> None:
    torch.testing.assert_close(left.sequence, right.sequence, atol=tolerance, rtol=0)
    torch.testing.assert_close(left.pooled, right.pooled, atol=tolerance, rtol=0)


@torch.no_grad()
@pytest.mark.parametrize("prompts", [PROMPTS, [NULL_PROMPT]])
def test_embeddings_are_the_pipelines(parts: dict[str, object], prompts: list[str]) -> None:
    pipeline = FluxPipeline(
        scheduler=None,
        vae=None,
        transformer=None,
        text_encoder=parts["clip"],
        tokenizer=parts["clip_tokenizer"],
        text_encoder_2=parts["t5"],
        tokenizer_2=parts["t5_tokenizer"],
    )
    sequence, pooled, _ = pipeline.encode_prompt(prompts, None, device=torch.device("cpu"), max_sequence_length=LENGTH)
    assert_close(encoder(parts).encode(prompts), TextEmbeddings(sequence, pooled), tolerance=0)


def test_different_prompts_differ_and_equal_ones_agree(parts: dict[str, object]) -> None:
    text = encoder(parts).encode([*PROMPTS, PROMPTS[0]])
    assert text.sequence.shape[:2] == (4, LENGTH)
    for part in (text.sequence, text.pooled):
        assert torch.equal(part[3], part[0])
        for row in (1, 2):
            assert (part[row] - part[0]).abs().max() > 1e-3
    assert not text.sequence.requires_grad


@pytest.mark.parametrize("cache_size", [1, 2, 100])
def test_cached_embeddings_are_the_fresh_ones(parts: dict[str, object], cache_size: int) -> None:
    cached = encoder(parts, cache_size)
    for prompts in (PROMPTS, PROMPTS[1:], [NULL_PROMPT], PROMPTS[::-1], PROMPTS):
        # Up to the last bit, in which matrix products depend on the batch's size.
        assert_close(cached.encode(prompts), encoder(parts).encode(prompts))
        assert len(cached._cache) <= cache_size


def test_the_cache_is_read(parts: dict[str, object], monkeypatch: pytest.MonkeyPatch) -> None:
    cached = encoder(parts, cache_size=10)
    cached.encode(PROMPTS)
    asked: list[str] = []
    fresh = cached._encode
    monkeypatch.setattr(cached, "_encode", lambda prompts, length: asked.extend(prompts) or fresh(prompts, length))
    cached.encode([*PROMPTS, "a blue heart"])
    assert asked == ["a blue heart"]
    cached.encode(PROMPTS, sequence_length=12)
    assert asked[1:] == PROMPTS, "the cache may not answer for another length"


def test_the_sequence_has_the_length_that_is_asked_for(parts: dict[str, object]) -> None:
    text = encoder(parts, cache_size=10)
    for length in (None, 12, 40, None):
        assert text.encode(PROMPTS, sequence_length=length).sequence.shape[1] == (length or LENGTH)
        assert text.null(length).sequence.shape[:2] == (1, length or LENGTH)


def test_no_text_is_the_empty_prompt(parts: dict[str, object]) -> None:
    text = encoder(parts)
    assert_close(text.null(), text.encode([""]), tolerance=0)


def test_long_prompts_are_cut_with_one_warning(parts: dict[str, object], caplog: pytest.LogCaptureFixture) -> None:
    text, long = encoder(parts), "a red star and " * 40
    with caplog.at_level(logging.WARNING):
        cut = text.encode([long])
        text.encode([long])
    for name, length in (("T5", LENGTH), ("CLIP", 77)):
        warnings = [record for record in caplog.records if record.getMessage().startswith(f"{name} reads {length} of")]
        assert len(warnings) == 1, name
    assert cut.sequence.shape[1] == LENGTH


def test_a_sequence_of_no_tokens_is_refused(parts: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="sequence_length=0"):
        TextEncoder(**parts, sequence_length=0)  # type: ignore[arg-type]
