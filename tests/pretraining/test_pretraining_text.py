"""Whether the shipped tokenizers keep their laws, the encoders can be read, and the command that makes them runs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from support.commands import ROOT, run
from transformers import AutoTokenizer, CLIPTextModel, CLIPTokenizer, PreTrainedTokenizerFast, T5EncoderModel

from dsd_lightning.miniature.captions import instruction, lighting
from dsd_lightning.miniature.world import draw_context
from dsd_lightning.pretraining.labelled_captions import ATTRIBUTES, KINDS, draw_caption
from dsd_lightning.pretraining.text import main, write_published_keys
from dsd_lightning.pretraining.tokenizers import DROPPED_WORDS

BASE = ROOT / "assets" / "tiny-flux"
FOLDERS = ("tokenizer", "tokenizer_2", "text_encoder", "text_encoder_2")
LONGEST = {"full": 24, "target": 20, "instruction": 20, "relighting": 20, "grid": 56}


@pytest.fixture(scope="module")
def clip_tokenizer() -> CLIPTokenizer:
    return CLIPTokenizer.from_pretrained(BASE / "tokenizer")


@pytest.fixture(scope="module")
def t5_tokenizer() -> PreTrainedTokenizerFast:
    return AutoTokenizer.from_pretrained(BASE / "tokenizer_2")


@pytest.fixture(scope="module")
def texts() -> dict[str, list[str]]:
    rng = np.random.default_rng(11)
    return {kind: [draw_caption(kind, rng, held_out=bool(i % 2)).text for i in range(500)] for kind in KINDS}


def test_captions_are_known_and_short(t5_tokenizer: PreTrainedTokenizerFast, texts: dict[str, list[str]]) -> None:
    for kind, drawn in texts.items():
        rows = t5_tokenizer(drawn).input_ids
        assert max(map(len, rows)) <= LONGEST[kind]
        assert all(row[-1] == 1 and not {0, 2} & set(row) for row in rows)


def test_caption_words_are_one_token_each(
    t5_tokenizer: PreTrainedTokenizerFast, clip_tokenizer: CLIPTokenizer, texts: dict[str, list[str]]
) -> None:
    words = {word for drawn in texts.values() for text in drawn for word in text.replace(",", "").split()}
    words = {word.rstrip(";") for word in words} | {";", "again", "unchanged"}
    for word in words:
        assert clip_tokenizer.tokenize(word) == [word + "</w>"]
        assert t5_tokenizer.tokenize(word) == ([] if word in DROPPED_WORDS else [word])


def test_dropped_words_leave_the_meaning(t5_tokenizer: PreTrainedTokenizerFast) -> None:
    short = t5_tokenizer("This character large, left; light from left").input_ids
    assert t5_tokenizer("this character, large, on the left; light from the left.").input_ids == short
    assert t5_tokenizer.decode(short, skip_special_tokens=True) == "this character large left ; light from left"
    assert t5_tokenizer("light from the left").input_ids != t5_tokenizer("light on the left").input_ids


def test_special_tokens_stand_where_t5_and_clip_have_them(
    t5_tokenizer: PreTrainedTokenizerFast, clip_tokenizer: CLIPTokenizer
) -> None:
    assert [t5_tokenizer.pad_token_id, t5_tokenizer.eos_token_id, t5_tokenizer.unk_token_id] == [0, 1, 2]
    assert t5_tokenizer("zyzzyva").input_ids == [2, 1]
    assert (t5_tokenizer.model_max_length, clip_tokenizer.model_max_length) == (64, 77)
    end = len(clip_tokenizer) - 1
    assert (clip_tokenizer.bos_token_id, clip_tokenizer.eos_token_id, clip_tokenizer.pad_token_id) == (
        end - 1,
        end,
        end,
    )


@pytest.mark.parametrize("word", ["zyzzyva", "über", "日本", "🙂", "qqq"])
def test_clip_spells_unknown_words(clip_tokenizer: CLIPTokenizer, word: str) -> None:
    ids = clip_tokenizer(word, add_special_tokens=False).input_ids
    assert len(ids) > 1
    assert clip_tokenizer.eos_token_id not in ids
    assert clip_tokenizer.decode(ids) == word


def test_clip_pools_at_the_end_of_each_caption(clip_tokenizer: CLIPTokenizer) -> None:
    encoder = CLIPTextModel.from_pretrained(BASE / "text_encoder")
    padded = clip_tokenizer(["red star", "a large blue heart"], padding="max_length", return_tensors="pt").input_ids
    with torch.no_grad():
        output = encoder(input_ids=padded)
        alone = encoder(input_ids=padded[:1, :4]).pooler_output
    assert torch.equal(output.pooler_output, output.last_hidden_state[[0, 1], [3, 5]])
    torch.testing.assert_close(output.pooler_output[:1], alone, rtol=0, atol=1e-5)


def published_keys(file: Path) -> bool:
    with safe_open(file, "pt") as weights:
        return all(name.startswith("text_model.") for name in weights.keys())  # noqa: SIM118  (it is no mapping)


def test_the_shipped_clip_has_the_keys_that_every_version_of_transformers_reads() -> None:
    file = BASE / "text_encoder" / "model.safetensors"
    assert published_keys(file)
    _, report = CLIPTextModel.from_pretrained(file.parent, output_loading_info=True)
    assert not any(report.values()), "a key is missing or left over"


def test_renaming_keys_changes_no_value_and_may_be_repeated(tmp_path: Path) -> None:
    file, values = tmp_path / "model.safetensors", {"a.weight": torch.randn(3), "text_model.b": torch.randn(2)}
    save_file(values, file)
    for _ in range(2):
        write_published_keys(file)
        renamed = load_file(file)
        assert renamed.keys() == {"text_model.a.weight", "text_model.b"}
        assert torch.equal(renamed["text_model.a.weight"], values["a.weight"])
    assert file.stat().st_mode & 0o777 == 0o644


def test_t5_states_have_unit_scale_and_know_the_role_of_a_word(t5_tokenizer: PreTrainedTokenizerFast) -> None:
    encoder = T5EncoderModel.from_pretrained(BASE / "text_encoder_2")
    as_place = [
        f"this character, {size}, on the left, tilted right, on a plain {color} background"
        for size in ("large", "small")
        for color in ("blue", "green", "pink")
    ]
    as_tilt = [text.replace("on the left", "on the right").replace("tilted right", "tilted left") for text in as_place]
    ids = t5_tokenizer(as_place + as_tilt, padding="max_length", max_length=20, return_tensors="pt").input_ids
    with torch.no_grad():
        states = encoder(input_ids=ids).last_hidden_state
    assert states.square().mean().sqrt().item() == pytest.approx(1, abs=0.05)
    left = states[ids == t5_tokenizer.convert_tokens_to_ids("left")]
    likeness = torch.cosine_similarity(left[:, None], left[None], dim=-1)
    count = len(as_place)
    same_role = torch.minimum(likeness[:count, :count].min(), likeness[count:, count:].min())
    assert likeness[:count, count:].max() < same_role


def test_labels_follow_the_text() -> None:
    rng = np.random.default_rng(3)
    for kind in ("full", "target", "instruction", "relighting"):
        for _ in range(100):
            drawn = draw_caption(kind, rng)
            said = {name: ATTRIBUTES[name][value] for name, value in drawn.stated.items()}
            assert ("light_color" in said) == (" light" in drawn.text)
            assert ("style" in said) == (" style" in drawn.text)
            assert ("background_color" in said) == (" background" in drawn.text)
            if "background_color" in said:
                assert f"{said['background_kind']} {said['background_color']} background" in drawn.text
            if said.get("light_color", "white") != "white":
                assert f"{said['light_color']} light" in drawn.text


def test_an_instruction_without_change_is_known_too(t5_tokenizer: PreTrainedTokenizerFast) -> None:
    context = draw_context(np.random.default_rng(0))
    assert 2 not in t5_tokenizer(instruction(context, context, np.random.default_rng(0))).input_ids
    assert 2 not in t5_tokenizer(lighting(context)).input_ids


@pytest.mark.long
def test_command_writes_all_four_folders_and_repeats_itself(tmp_path: Path) -> None:
    weights = []
    for name in ("first", "second"):
        few = ["steps=3", "batch_size=8", "held_out_captions=4"]
        few += [f"output={tmp_path / name}", f"work_dir={tmp_path / 'work'}"]
        if name == "first":
            assert run(*few, module=("-m", "dsd_lightning.pretraining.text")).returncode == 0
        else:
            main(
                OmegaConf.merge(
                    OmegaConf.load(ROOT / "conf" / "pretraining" / "text.yaml"), OmegaConf.from_dotlist(few)
                )
            )
        assert sorted(path.name for path in (tmp_path / name).iterdir()) == sorted(FOLDERS)
        weights.append([path.read_bytes() for path in sorted((tmp_path / name).glob("*/*"))])
    assert weights[0] == weights[1]
    assert published_keys(tmp_path / "second" / "text_encoder" / "model.safetensors")
    assert (tmp_path / "work" / "accuracy.json").exists()
