"""Transformers in one file and in shards are read alike; missing, extra and damaged files are refused by name."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.models.golden_pipeline import BASE, LORA, SIDE, TRANSFORMER, draw
from support.models.golden_pipeline import official as golden

from dsd_lightning.checkpoints.lora_files import LORA_FILE
from dsd_lightning.checkpoints.weight_files import INDEX_FILE, TRANSFORMER_FILE, OfficialWeightsError
from dsd_lightning.flux.base import BaseModelError
from dsd_lightning.pipeline import TwoFramePipeline

SHARDS = [f"diffusion_pytorch_model-0000{number}-of-00002.safetensors" for number in (1, 2)]


def load(folder: Path, lora: object = None) -> torch.Tensor:
    pipeline = TwoFramePipeline.load(BASE, folder, lora, dtype=torch.float32, default_size=SIDE, device="cpu")
    pipeline.set_progress_bar_config(disable=True)
    latents: torch.Tensor = draw(pipeline)
    return latents


@pytest.fixture
def sharded(tmp_path: Path) -> Path:
    """Return the official transformer in two shards, as diffusers saves it."""
    folder = tmp_path / "transformer"
    folder.mkdir()
    shutil.copy(TRANSFORMER / "config.json", folder)
    weights = load_file(TRANSFORMER / TRANSFORMER_FILE)
    of_name = {name: SHARDS[index % 2] for index, name in enumerate(sorted(weights))}
    for shard in SHARDS:
        save_file({name: value for name, value in weights.items() if of_name[name] == shard}, folder / shard)
    (folder / INDEX_FILE).write_text(json.dumps({"metadata": {}, "weight_map": of_name}))
    return folder


def test_shards_are_read_as_one_file(sharded: Path) -> None:
    assert torch.equal(load(sharded), draw(golden("none")))
    (sharded / INDEX_FILE).unlink()
    assert torch.equal(load(sharded), draw(golden("none")))


def lists(name: str) -> Callable[[Path], None]:
    """Return a change of a folder, whose index then lists `name`."""
    return lambda folder: (folder / INDEX_FILE).write_text(json.dumps({"weight_map": {"proj_out.bias": name}})) and None


def without_index(folder: Path) -> None:
    (folder / INDEX_FILE).unlink()
    (folder / SHARDS[1]).unlink()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda folder: (folder / SHARDS[1]).unlink(), f"lacks '{SHARDS[1]}', which {INDEX_FILE} lists"),
        (without_index, r"holds 1 shards \('diffusion.*whose names say 00002"),
        (
            lambda folder: shutil.copy(TRANSFORMER / TRANSFORMER_FILE, folder),
            f"{TRANSFORMER_FILE} beside {SHARDS[0]}: one file and shards",
        ),
        (lists(SHARDS[0]), f"holds '{SHARDS[1]}', which {INDEX_FILE} does not list"),
        (
            lists("../../elsewhere.safetensors"),
            "lists '../../elsewhere.safetensors', which is no .safetensors file beside",
        ),
        (lists("/etc/passwd"), "lists '/etc/passwd'"),
        (lambda folder: (folder / INDEX_FILE).write_text("[]"), "index.json cannot be read"),
    ],
)
def test_shards_that_are_not_one_whole_are_refused(
    sharded: Path, change: Callable[[Path], object], message: str
) -> None:
    change(sharded)
    with pytest.raises(OfficialWeightsError, match=message):
        load(sharded)


def changed_config(folder: Path, **values: object) -> Path:
    """Return a copy of the official transformer with other values in its configuration."""
    shutil.copytree(TRANSFORMER, folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | values))
    return folder


def test_an_unknown_key_of_the_configuration_is_passed_over(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = changed_config(tmp_path / "transformer", of_the_future=True)
    with caplog.at_level(logging.WARNING):
        assert torch.equal(load(folder), draw(golden("none")))
    assert "passed over of_the_future" in caplog.text


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"joint_attention_dim": 48}, "joint_attention_dim=48, but text_encoder_2 of .* writes"),
        ({"pooled_projection_dim": 48}, "pooled_projection_dim=48, but text_encoder of .* writes"),
    ],
)
def test_text_of_another_width_is_refused(tmp_path: Path, values: dict[str, int], message: str) -> None:
    with pytest.raises(BaseModelError, match=message):
        load(changed_config(tmp_path / "transformer", **values))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_weights_that_are_not_finite_are_refused(tmp_path: Path, value: float) -> None:
    folder = tmp_path / "transformer"
    shutil.copytree(TRANSFORMER, folder)
    weights = load_file(folder / TRANSFORMER_FILE)
    weights["proj_out.bias"][0] = value
    save_file(weights, folder / TRANSFORMER_FILE)
    with pytest.raises(OfficialWeightsError, match=f"{TRANSFORMER_FILE}: 'proj_out.bias' holds NaN or infinite"):
        load(folder)
    factors = load_file(LORA)
    first = next(iter(factors))
    factors[first][0] = value
    save_file(factors, tmp_path / LORA_FILE)
    with pytest.raises(OfficialWeightsError, match=f"{LORA_FILE}: '{first}' holds NaN"):
        load(TRANSFORMER, tmp_path / LORA_FILE)
