"""A pipeline is saved, loaded from any run, placed and offloaded without a change in what it generates."""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hydra.utils import instantiate
from support.commands import compose_train
from support.models.golden_pipeline import BASE, LORA, SIDE, TRANSFORMER, draw, official

from dsd_lightning.checkpoints.adapter import header_of
from dsd_lightning.checkpoints.folder_io import FolderCheckpointIO
from dsd_lightning.flux.quantize import QuantizationError
from dsd_lightning.pipeline import TwoFramePipeline
from dsd_lightning.pipeline.loading import LoadingError
from dsd_lightning.pipeline.schedule import scheduler_of, shift_of
from dsd_lightning.randomness import normal
from dsd_lightning.rectified_flow import FixedShift, NoShift, ResolutionShift
from dsd_lightning.runs.folder import write_config

# --- Saving, loading, placing.


@pytest.mark.parametrize("lora", ["merged", "unmerged"])
def test_saved_and_loaded_it_generates_the_same(tmp_path: Path, lora: str) -> None:
    official(lora).save_pretrained(tmp_path)
    loaded = TwoFramePipeline.from_pretrained(tmp_path)
    loaded.set_progress_bar_config(disable=True)
    torch.testing.assert_close(draw(loaded), draw(official(lora)), rtol=0, atol=1e-4)
    assert loaded.config.default_size == SIDE


def test_a_folder_of_another_kind_is_no_saved_pipeline() -> None:
    with pytest.raises(LoadingError, match="was not saved by"):
        TwoFramePipeline.from_pretrained(BASE)


@pytest.mark.parametrize("shift", [NoShift(), FixedShift(3.0), ResolutionShift(16, 64, 0.95, 1.4)])
def test_a_scheduler_holds_every_shift(shift: NoShift | FixedShift | ResolutionShift) -> None:
    assert shift_of(scheduler_of(shift)) == shift


@pytest.fixture
def make_run(tiny_base: Path, tmp_path: Path) -> Callable[[str], Path]:
    """Return a function that makes the folder of a run of an architecture, its EMA weights unlike its last ones."""

    def make(arch: str) -> Path:
        task = "text_to_image" if arch == "text_only" else "identity"
        run = tmp_path / arch
        config = compose_train(run, f"arch={arch}", f"task={task}", f"base.model.path={tiny_base}", "shift=fixed")
        write_config(config, run)
        architecture = instantiate(config.arch)(transformer=instantiate(config.base.model).transformer())
        weights, ema = (
            {name: 0.05 * normal(value.shape, kind, name) for name, value in architecture.trainable()}
            for kind in ("weights", "ema")
        )
        checkpoint = {"state_dict": weights, "ema": ema, "adapter": header_of(architecture)}
        FolderCheckpointIO().save_checkpoint(checkpoint, run / "checkpoints" / "step_00000004")
        return run

    return make


@pytest.mark.parametrize("arch", ["parallel", "text_only"])
def test_a_run_of_any_architecture(make_run: Callable[[str], Path], arch: str) -> None:
    run = make_run(arch)
    pipelines = [
        TwoFramePipeline.from_run(run, device="cpu"),
        TwoFramePipeline.from_run(run / "checkpoints" / "step_00000004", merge_lora=False, device="cpu"),
        TwoFramePipeline.from_run(run, ema=False, device="cpu"),
    ]
    outputs = []
    for pipeline in pipelines:
        pipeline.set_progress_bar_config(disable=True)
        assert pipeline.config.default_size == 64
        assert shift_of(pipeline.scheduler) == FixedShift(3.0)
        latents = pipeline.draw_latents(1, 32, 32, torch.Generator().manual_seed(0))
        assert latents.shape == ((1, 32, 24) if arch == "parallel" else (1, 16, 24))
        outputs.append(draw(pipeline, latents=latents, height=32, width=32))
    torch.testing.assert_close(outputs[0], outputs[1], rtol=0, atol=1e-4)
    assert (outputs[0] - outputs[2]).abs().max() > 1e-3, "EMA weights by default"


# accelerate's hooks layer by layer want a device other than the one that keeps the weights.
@pytest.mark.parametrize("kind", ["model", pytest.param("sequential", marks=pytest.mark.gpu)])
@pytest.mark.parametrize("factors", ["merged", "unmerged"])
def test_offload_hooks_change_nothing(kind: str, factors: str) -> None:
    choices: dict[str, Any] = {"lora": LORA, "merge_lora": factors == "merged"}
    pipeline = TwoFramePipeline.load(BASE, TRANSFORMER, dtype=torch.float32, default_size=SIDE, device="cpu", **choices)
    expected = draw(pipeline, output_type="np")
    pipeline.set_progress_bar_config(disable=True)
    # accelerate's hooks on the CPU: the same paths as on a GPU, where they move weights.
    if kind == "model":
        pipeline.enable_model_cpu_offload(device="cpu")
    else:
        pipeline.enable_sequential_cpu_offload(device="cuda")
    np.testing.assert_allclose(draw(pipeline, output_type="np"), expected, rtol=0, atol=1e-4)


def test_offload_without_a_gpu_is_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        official().ready(offload="model", device="cpu")
    assert "offload=model needs a GPU" in caplog.text


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there_is_refused() -> None:
    with pytest.raises(ValueError, match="there is no GPU here"):
        official().ready(device="cuda")


@pytest.mark.parametrize(("kind", "library"), [("fp8", "torchao"), ("int8", "torchao"), ("nf4", "bitsandbytes")])
def test_quantisation_names_the_library_it_needs(kind: Any, library: str) -> None:
    if importlib.util.find_spec(library) is not None:
        pytest.skip(f"{library} is installed")
    with pytest.raises(QuantizationError, match=f"pip install {library}"):
        official().ready(quantize=kind)


def test_factors_that_are_not_merged_are_not_quantised() -> None:
    with pytest.raises(QuantizationError, match="merged before"):
        official("unmerged").ready(quantize="int8")
    with pytest.raises(QuantizationError, match="do not go together"):
        official().ready(quantize="int8", offload="sequential")
