"""Shipped settings train as they are: own precision, optimizer and clipping; nothing but sizes and devices is overridden."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf
from support.commands import SOURCE, compose_train

from dsd_lightning.module import DiffusionSelfDistillation
from dsd_lightning.training.run import train


def sizes(base: Path) -> list[str]:
    """Return overrides that make a run small, on one CPU, and change nothing else."""
    return [
        f"base.model.path={base}",
        "arch.lora.rank=2",
        "data=miniature",
        f"{SOURCE}.pairs=4",
        f"{SOURCE}.validation_pairs=2",
        f"{SOURCE}.resolution=[64,64]",
        f"~{SOURCE}.workers",
        f"~{SOURCE}.max_damaged",
        "data.datamodule.batch_size=2",
        "trainer/strategy=single",
        "trainer.accelerator=cpu",
        "trainer.devices=1",
        "trainer.max_steps=2",
        "trainer.val_check_interval=2",
        "trainer.accumulate_grad_batches=1",
    ]


@pytest.mark.slow
def test_the_papers_run_steps_validates_and_resumes_in_its_own_precision(
    tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    modes = []
    monkeypatch.setattr(
        DiffusionSelfDistillation,
        "on_validation_start",
        lambda self: modes.append(torch.is_inference_mode_enabled()),
        raising=False,
    )
    choices = ["experiment=dsd_paper", *sizes(tiny_base), "base=tiny", "compile=false"]
    config = compose_train(tmp_path, *choices, as_it_is=True)
    assert (config.trainer.precision, config.optimizer.fused, config.trainer.gradient_clip_val) == (
        "bf16-mixed",
        True,
        1.0,
    )
    train(config, tmp_path)
    resumed = compose_train(tmp_path, *choices, "trainer.max_steps=3", "ckpt=last", as_it_is=True)
    train(resumed, tmp_path)
    assert (tmp_path / "checkpoints" / "step_00000003").is_dir()
    assert modes
    assert not any(modes), "EMA weights are swapped in by detach, which inference mode refuses for sharded tensors"


@pytest.mark.parametrize("memory", ["24gb", "48gb", "80gb"])
def test_memory_has_the_last_word_over_the_experiment(memory: str) -> None:
    config = compose_train(Path("run"), "experiment=dsd_paper", f"memory={memory}", "data.root=FOLDER", as_it_is=True)
    alone = compose_train(
        Path("run"), "base=flux_dev", "data=shards", f"memory={memory}", "data.root=FOLDER", as_it_is=True
    )
    for key in ("arch.lora.rank", "data.datamodule.batch_size", "trainer.accumulate_grad_batches"):
        of = [OmegaConf.select(each, key) for each in (config, alone)]
        assert of[0] == of[1], key
