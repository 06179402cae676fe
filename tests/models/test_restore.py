"""A run is used with the base it was trained on, wherever its weights came from, and exported or generated from alike."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from diffusers import FluxTransformer2DModel
from support.commands import SOURCE, compose_train
from support.finished_runs import finish
from support.models.golden_pipeline import BASE, GOLDEN, SIDE, TRANSFORMER, draw
from torch import Tensor

from dsd_lightning.checkpoints.adapter import AdapterMismatchError
from dsd_lightning.checkpoints.folder_io import find_last
from dsd_lightning.checkpoints.official import LORA_FILE
from dsd_lightning.export.card import licence_of
from dsd_lightning.export.command import main as export
from dsd_lightning.flux.base import FluxBase
from dsd_lightning.models.build import build_base
from dsd_lightning.pipeline import TwoFramePipeline
from dsd_lightning.runs.folder import NoRunError

TARGETS = r"arch.lora.targets='transformer_blocks\.\d+\.attn\.to_q'"
LORA = {
    "the file's factors": ["arch.lora=null"],
    "own factors": ["arch.lora.rank=2", TARGETS],
    "no factors": ["arch.lora=null"],
}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a base whose own transformer is not the official one."""
    folder = tmp_path_factory.mktemp("base") / "plain"
    shutil.copytree(BASE, folder)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = FluxTransformer2DModel.load_config(TRANSFORMER)
        FluxTransformer2DModel.from_config(config).save_pretrained(folder / "transformer")
    return folder


def train(folder: Path, base: Path, *overrides: str) -> Path:
    """Train two steps and return the run's folder."""
    return finish(
        folder,
        f"base.model.path={base}",
        f"{SOURCE}.pairs=4",
        f"{SOURCE}.validation_pairs=2",
        "data.datamodule.batch_size=2",
        "trainer.max_steps=2",
        "trainer.accelerator=cpu",
        "optimizer=adamw",
        "optimizer.lr=1e-2",
        "schedule.num_warmup_steps=1",
        "callbacks=minimal",
        "logger=csv",
        *overrides,
    )


@pytest.fixture(scope="module", params=list(LORA))
def run(request: pytest.FixtureRequest, base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a run that started from official weights, its EMA weights unlike its last ones."""
    folder = tmp_path_factory.mktemp("run")
    official = GOLDEN / "tiny_official"
    if request.param != "the file's factors":
        shutil.copytree(TRANSFORMER, folder / "official" / "transformer")
        official = folder / "official"
    return train(folder / "run", base, f"init_from={official}", *LORA[request.param])


def latents(pipeline: TwoFramePipeline) -> Tensor:
    pipeline.set_progress_bar_config(disable=True)
    return draw(pipeline, height=SIDE, width=SIDE)


def assert_same(left: TwoFramePipeline, right: TwoFramePipeline) -> None:
    torch.testing.assert_close(latents(left), latents(right), rtol=0, atol=1e-5)


def test_generation_uses_the_official_weights_a_run_started_from(run: Path, tmp_path: Path) -> None:
    official, adapter = tmp_path / "official", tmp_path / "adapter"
    assert export([str(run), str(official), "--format", "official"]) == 0
    assert export([str(run), str(adapter)]) == 0
    exported = TwoFramePipeline.load(
        BASE, official / "transformer", official / LORA_FILE, dtype=torch.float32, text_length=24, device="cpu"
    )
    assert_same(TwoFramePipeline.from_run(run, device="cpu"), exported)
    assert_same(TwoFramePipeline.from_run(run, merge_lora=False, device="cpu"), exported)
    assert_same(TwoFramePipeline.from_run(adapter, device="cpu"), exported)


def test_a_saved_pipeline_holds_factors_that_came_from_a_file(run: Path, tmp_path: Path) -> None:
    pipeline = TwoFramePipeline.from_run(run, merge_lora=False, device="cpu")
    pipeline.save_pretrained(tmp_path)
    assert_same(TwoFramePipeline.from_pretrained(tmp_path), pipeline)


def test_weights_trained_on_official_weights_are_refused_on_another_base(run: Path, base: Path, tmp_path: Path) -> None:
    checkpoint = find_last(run / "checkpoints")
    with pytest.raises(AdapterMismatchError, match=r"init_from|arch\.lora"):
        train(tmp_path / "second", base, f"init_from={checkpoint}", *LORA["own factors"])


def test_a_folder_that_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(NoRunError, match=r"is no run folder: it has no config\.yaml"):
        TwoFramePipeline.from_run(tmp_path)


def test_training_goes_on_from_a_run_folder(tiny_base: Path, tmp_path: Path) -> None:
    few = ["arch.lora.rank=2", *LORA["own factors"][1:]]
    first = train(tmp_path / "first", tiny_base, *few)
    second = train(tmp_path / "second", tiny_base, *few, f"ckpt={first}", "trainer.max_steps=3")
    assert find_last(second / "checkpoints") == second / "checkpoints" / "step_00000003"
    third = train(tmp_path / "third", tiny_base, *few, f"init_from={first}", "trainer.max_steps=1")
    assert (third / "summary.json").is_file()
    (tmp_path / "empty" / "checkpoints").mkdir(parents=True)
    with pytest.raises(FileNotFoundError, match="holds no complete checkpoint"):
        train(tmp_path / "fourth", tiny_base, *few, f"ckpt={tmp_path / 'empty'}")


@pytest.mark.image_encoder
def test_training_finds_the_shipped_assets_from_any_working_directory(
    tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    run = train(tmp_path / "run", tiny_base, "arch=ip_adapter")
    build_base(compose_train(tmp_path, "base=tiny")).require_parts()
    assert TwoFramePipeline.from_run(run, device="cpu").config.default_size == SIDE
    assert licence_of(FluxBase("assets/tiny-flux")).fields == {"license": "apache-2.0"}
