"""Shipped settings train as they are: own precision, optimizer and schedule; nothing but sizes and devices is overridden."""

from __future__ import annotations

import json
import re
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf
from support.choices import options
from support.commands import SOURCE, compose_train, run
from support.presets import miniature_sizes, sizes, write_encoded, write_student_sets

from dsd_lightning.module import DiffusionSelfDistillation
from dsd_lightning.training.run import train

PRESETS = ("dsd_paper", "dsd_schnell", "flux_24gb", "flux_48gb", "flux_80gb")
"""Experiments on FLUX.1-dev or FLUX.1-schnell."""

CHOICES = (*(f"experiment={each}" for each in PRESETS), *(f"memory={each}" for each in options("memory")))
MINIATURE = tuple(each for each in options("experiment") if each not in PRESETS)
"""Experiments on the miniature."""


@pytest.fixture(scope="module")
def encoded(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return shards with the encodings that the presets read."""
    return write_encoded(tiny_base, tmp_path_factory.mktemp("encoded"))


@pytest.mark.slow
@pytest.mark.parametrize(
    "preset", [*(f"experiment={each}" for each in PRESETS), *(f"memory={each}" for each in options("memory"))]
)
def test_a_preset_trains_validates_saves_and_resumes_as_it_is(
    preset: str, tiny_base: Path, tiny_schnell: Path, encoded: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    modes = []
    monkeypatch.setattr(
        DiffusionSelfDistillation,
        "on_validation_start",
        lambda self: modes.append(torch.is_inference_mode_enabled()),
        raising=False,
    )
    if preset.endswith("24gb") and find_spec("bitsandbytes") is None:
        pytest.skip("needs bitsandbytes, from the extra [quantize]")
    distilled = preset == "experiment=dsd_schnell"
    base, settings = (tiny_schnell, "flux_schnell") if distilled else (tiny_base, "flux_dev")
    # What a memory preset is for: a run that no experiment describes.
    data = ["data=shards", f"{SOURCE}.encoded=true"] if preset.startswith("memory=") else []
    choices = [preset, *data, *sizes(base, encoded, settings=settings)]
    config = compose_train(tmp_path, *choices, "trainer.max_steps=2", as_it_is=True)
    assert (config.trainer.precision, config.trainer.gradient_clip_val) == ("bf16-mixed", 1.0)
    assert (config.optimizer["_target_"], config.optimizer.lr) == ("torch.optim.AdamW", 1e-4)
    train(config, tmp_path)
    resumed = compose_train(tmp_path, *choices, "trainer.max_steps=3", "ckpt=last", as_it_is=True)
    train(resumed, tmp_path)
    assert (tmp_path / "checkpoints" / "step_00000003").is_dir()
    assert sorted(path.name for path in (tmp_path / "samples").glob("step_*.png"))[-1] == "step_00000003.png"
    assert modes
    assert not any(modes), "EMA weights are swapped in by detach, which inference mode refuses for sharded tensors"


@pytest.mark.slow
@pytest.mark.parametrize("experiment", MINIATURE)
def test_an_experiment_of_the_miniature_trains_validates_saves_and_resumes_as_it_is(
    experiment: str, tiny_base: Path, tmp_path: Path
) -> None:
    sets = write_student_sets(tiny_base, tmp_path / "sets") if experiment == "students" else tmp_path
    choices = [f"experiment={experiment}", *miniature_sizes(experiment, tiny_base, sets)]
    run_dir = tmp_path / "run"
    config = compose_train(run_dir, *choices, "trainer.max_steps=2", as_it_is=True)
    shipped = compose_train(run_dir, f"experiment={experiment}", as_it_is=True)
    own, of_run = (
        {key: OmegaConf.to_container(each, resolve=False)[key] for key in ("optimizer", "schedule", "shift", "dropout")}  # type: ignore[index, call-overload]
        for each in (shipped, config)
    )
    assert of_run == own
    assert config.trainer.precision == shipped.trainer.precision
    train(config, run_dir)
    assert json.loads((run_dir / "summary.json").read_text())["val/loss_target"] > 0
    train(compose_train(run_dir, *choices, "trainer.max_steps=3", "ckpt=last", as_it_is=True), run_dir)
    assert (run_dir / "checkpoints" / "step_00000003").is_dir()


@pytest.mark.long
@pytest.mark.parametrize("preset", PRESETS)
def test_a_preset_fits_the_gpu_that_it_is_made_for(preset: str) -> None:
    # In a process of its own: the suite's checks of array shapes hold arguments, and tensors, longer.
    text = run(f"experiment={preset}", "data.root=FOLDER", "plan=true").stdout
    line = re.search(r"memory: peak +([\d.]+) GiB of ([\d.]+): fits", text)
    assert line, text
    peak, free = (float(number) for number in line.groups())
    assert peak <= 0.92 * free


@pytest.mark.parametrize("memory", ["24gb", "48gb", "80gb"])
def test_memory_has_the_last_word_over_the_experiment(memory: str) -> None:
    config = compose_train(Path("run"), "experiment=dsd_paper", f"memory={memory}", "data.root=FOLDER", as_it_is=True)
    alone = compose_train(
        Path("run"), "base=flux_dev", "data=shards", f"memory={memory}", "data.root=FOLDER", as_it_is=True
    )
    for key in ("arch.lora.rank", "data.datamodule.batch_size", "trainer.accumulate_grad_batches"):
        of = [OmegaConf.select(each, key) for each in (config, alone)]
        assert of[0] == of[1], key
