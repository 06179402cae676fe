"""Every architecture trains from its YAML, resumes bit for bit, and exports weights that load again.

Architectures and tasks are read from `conf/`, so that new files are tested too. Each architecture is tested on one task, and
each task on an architecture; `tests/conf/test_choices.py` trains a step of all architectures on all tasks.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from _pytest.mark import ParameterSet
from omegaconf import OmegaConf
from support.commands import CONF, assert_equal, compose_train, metrics, tiny_miniature
from support.finished_runs import final_state, finish
from torch import Tensor

from dsd_lightning.architectures.base import Architecture
from dsd_lightning.checkpoints.adapter import EMA_WEIGHTS, HEADER, WEIGHTS
from dsd_lightning.checkpoints.folder_io import STEP_FOLDER, find_last, list_steps
from dsd_lightning.export import command as export
from dsd_lightning.flux.codec import Codec
from dsd_lightning.models.build import build_architecture
from dsd_lightning.module import DiffusionSelfDistillation
from dsd_lightning.pairs import REFERENCE, Condition, TextEmbeddings
from dsd_lightning.randomness import normal
from dsd_lightning.training import run as training

STEPS, KILLED_AFTER = 20, 13

VARIANTS = {
    "reference_tokens-separate_pass": ["arch=reference_tokens", "arch.separate_pass=true"],
    "controlnet-with_lora": ["arch=controlnet", "+arch/lora=all_linear"],
}
"""Settings that change how an architecture works; every YAML of `conf/arch` is tested as it is, too."""

ARCHITECTURES = {file.stem: [f"arch={file.stem}"] for file in sorted((CONF / "arch").glob("*.yaml"))} | VARIANTS
BRIEF = ("concat", "controlnet", "ip_adapter", "parallel")
"""One architecture of each way in which a reference can enter; the default suite trains these."""

# Only text_only trains on pairs without a reference.
TASKS = [
    file.stem
    for file in sorted((CONF / "task").glob("*.yaml"))
    if REFERENCE in OmegaConf.load(file).relation.frame_weights
]


def on_one_task() -> list[ParameterSet]:
    """Return every architecture with a task, the tasks in turn; those that are not of `BRIEF` are `long`."""
    return [
        pytest.param(arch, TASKS[index % len(TASKS)], marks=() if arch in BRIEF else pytest.mark.long)
        for index, arch in enumerate(ARCHITECTURES)
    ]


def overrides_of(arch: str, task: str, base: Path) -> list[str]:
    """Return overrides for a run of 20 steps, which takes a few seconds."""
    chosen = ARCHITECTURES[arch]
    overrides = tiny_miniature(
        base,
        *chosen,
        f"task={task}",
        f"trainer.max_steps={STEPS}",
        "trainer.val_check_interval=10",
        f"callbacks.checkpoint.every_n_steps={KILLED_AFTER}",
        "callbacks.probe=null",
        "logger=csv",
    )
    with_factors = compose_train(Path("run"), *chosen).arch.lora is not None
    return [each for each in overrides if with_factors or each != "arch.lora.rank=2"]


def trained(
    run_dir: Path, overrides: list[str], monkeypatch: pytest.MonkeyPatch
) -> tuple[Path, DiffusionSelfDistillation]:
    """Run the training and return its last checkpoint and its module."""
    modules = []
    build = training.build_module
    with monkeypatch.context() as patch:
        patch.setattr(training, "build_module", lambda *given: modules.append(build(*given)) or modules[-1])
        finish(run_dir, *overrides)
    checkpoint = find_last(run_dir / "checkpoints")
    assert checkpoint is not None
    return checkpoint, modules[0]


@torch.no_grad()
def prediction(architecture: Architecture, codec: Codec) -> Tensor:
    image = normal((2, 3, 64, 64), "image").clamp(-1, 1)
    clean = architecture.encode_clean(image, image, codec)
    text = TextEmbeddings(normal((2, 5, 64), "text"), normal((2, 64), "pooled"))
    condition = Condition(text, torch.full((2,), 3.5), architecture.encode_reference(image, codec))
    return architecture.eval()(normal(clean.shape, "noise"), torch.tensor([0.5, 0.25]), condition)


@pytest.mark.slow
@pytest.mark.parametrize(("arch", "task"), on_one_task())
def test_it_trains_resumes_bit_for_bit_and_its_exported_weights_load(
    arch: str, task: str, tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    overrides = overrides_of(arch, task, tiny_base)
    straight, module = trained(tmp_path / "straight", overrides, monkeypatch)
    assert sorted(list_steps(straight.parent)) == [KILLED_AFTER, STEPS]
    rows = metrics(tmp_path / "straight")
    assert all(float(row["train/loss"]) > 0 for row in rows if row.get("train/loss"))
    assert len(list((tmp_path / "straight" / "samples").glob("*.png"))) >= 1

    # What a kill after that step would have left.
    killed = tmp_path / "resumed" / "checkpoints" / STEP_FOLDER.format(KILLED_AFTER)
    shutil.copytree(straight.with_name(killed.name), killed)
    resumed, _ = trained(tmp_path / "resumed", [*overrides, "ckpt=last"], monkeypatch)
    for name in (WEIGHTS, EMA_WEIGHTS, HEADER):
        assert (resumed / name).read_bytes() == (straight / name).read_bytes(), name
    states = [final_state(tmp_path / name) for name in ("straight", "resumed")]
    assert_equal(states[0]["optimizer_states"], states[1]["optimizer_states"], "optimizer")
    assert_equal(states[0]["loops"], states[1]["loops"], "loops")

    # The exported folder, in a model built again from the same command.
    assert export.main([str(tmp_path / "straight"), str(tmp_path / "exported"), "--raw"]) == 0
    parameters = json.loads((tmp_path / "exported" / HEADER).read_text())["parameters"]
    assert parameters == sum(each.numel() for _, each in module.architecture.trainable())
    fresh = build_architecture(compose_train(tmp_path, *overrides))
    loaded = build_architecture(compose_train(tmp_path, *overrides, f"init_from={tmp_path / 'exported'}"))
    expected = prediction(module.architecture, module.codec)
    assert torch.equal(prediction(loaded, module.codec), expected)
    assert not torch.equal(prediction(fresh, module.codec), expected)
