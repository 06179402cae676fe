"""The authors' weights are found by a hub id, a folder, or their transformer alone; names that lead to nothing are refused."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from huggingface_hub import constants
from safetensors.torch import load_file, save_file
from support.models.golden_pipeline import BASE, GOLDEN, LORA, SIDE, TRANSFORMER, draw
from support.models.golden_pipeline import official as golden

from dsd_lightning.checkpoints.lora_files import LORA_FILE
from dsd_lightning.checkpoints.weight_files import OfficialWeightsError
from dsd_lightning.models.hub import ModelSourceError, find_lora, find_official
from dsd_lightning.pipeline import TwoFramePipeline

OFFICIAL = GOLDEN / "tiny_official"
HUB_ID = "primecai/dsd_model"


@pytest.fixture
def hub_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the hub's cache with the small official weights in it, as a download leaves it."""
    repository = tmp_path / "cache" / f"models--{HUB_ID.replace('/', '--')}"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text("0" * 40)
    (repository / "snapshots").mkdir()
    (repository / "snapshots" / ("0" * 40)).symlink_to(OFFICIAL)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def loaded(*names: object, **options: object) -> torch.Tensor:
    pipeline = TwoFramePipeline.load(BASE, *names, dtype=torch.float32, default_size=SIDE, device="cpu", **options)
    pipeline.set_progress_bar_config(disable=True)
    latents: torch.Tensor = draw(pipeline)
    return latents


@pytest.mark.parametrize("name", [HUB_ID, OFFICIAL, TRANSFORMER])
def test_the_lora_beside_the_transformer_is_found(hub_cache: Path, name: object) -> None:
    assert torch.equal(loaded(name), draw(golden("merged")))


def test_no_lora_and_another_one_can_be_chosen(hub_cache: Path, tmp_path: Path) -> None:
    assert torch.equal(loaded(HUB_ID, lora=None), draw(golden("none")))
    assert torch.equal(loaded(HUB_ID, lora=HUB_ID), draw(golden("merged")))
    assert torch.equal(loaded(HUB_ID, lora=f"{LORA}:0"), draw(golden("none")))


def test_a_folder_with_a_lora_alone_is_used_on_the_bases_own_transformer(tmp_path: Path) -> None:
    (tmp_path / LORA_FILE).symlink_to(LORA)
    files = find_official(tmp_path)
    assert (files.transformer, files.lora) == (None, tmp_path / LORA_FILE)


def test_a_file_whose_name_looks_weighted_is_that_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    os.symlink(LORA, "a:2")
    assert find_lora("a:2").weight == 1
    os.symlink(LORA, "a")
    assert (find_lora("a:-0.5").path, find_lora("a:-0.5").weight) == (Path("a"), -0.5)


@pytest.mark.parametrize("name", ["primecai/another", "black-forest-labs/FLUX.1-nowhere"])
def test_a_hub_id_that_cannot_be_reached_is_refused(hub_cache: Path, name: str) -> None:
    with pytest.raises(ModelSourceError, match=rf"{name} is no folder or file here.*hub"):
        find_official(name)
    with pytest.raises(ModelSourceError, match="cannot be downloaded"):
        TwoFramePipeline.from_run(name)


def test_a_folder_of_something_else_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelSourceError, match=r"does not hold the official weights.*primecai/dsd_model"):
        find_official(tmp_path)


@pytest.mark.parametrize("name", ["nowhere", "nowhere:0.5", "a/b/c"])
def test_a_lora_that_is_not_there_is_refused(name: str) -> None:
    with pytest.raises(ModelSourceError, match="there is no such LoRA file"):
        find_lora(name)


def test_a_folder_with_several_files_or_none_is_refused(tmp_path: Path) -> None:
    with pytest.raises(OfficialWeightsError, match="holds none"):
        find_lora(tmp_path)
    for name in ("one", "two"):
        save_file(load_file(LORA), tmp_path / f"{name}.safetensors")
    with pytest.raises(OfficialWeightsError, match=r"holds several: 'one\.safetensors', 'two\.safetensors'"):
        find_lora(tmp_path)
