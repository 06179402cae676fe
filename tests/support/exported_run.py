"""A run folder as training leaves it, with random numbers as trained weights, for the tests of exports."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from dsd_lightning.architectures.base import Architecture
from dsd_lightning.checkpoints.adapter import header_of
from dsd_lightning.checkpoints.folder_io import STEP_FOLDER, FolderCheckpointIO
from dsd_lightning.export.command import main
from dsd_lightning.models.build import build_architecture
from dsd_lightning.pairs import Condition, TextEmbeddings
from dsd_lightning.randomness import normal
from dsd_lightning.runs.folder import write_config
from support.commands import compose_train

LORA = ("arch.lora.rank=2", "arch.lora.alpha=3")
"""alpha unlike rank: its scale has to be folded in."""

BATCH, LATENTS = 2, (6, 8, 8)
"""Samples; channels, height and width of a frame's latents."""


@dataclass(frozen=True)
class MadeRun:
    """A run's folder, and the architecture that it trained."""

    folder: Path
    architecture: Architecture


def make_run(folder: Path, base: Path, *choices: str) -> MadeRun:
    """Write to `folder` what `python train.py CHOICES` would: configuration, one checkpoint, metrics."""
    config = compose_train(folder, f"base.model.path={base}", *choices)
    architecture = with_random_weights(build_architecture(config))
    trained = {name: value.detach().clone() for name, value in architecture.trainable()}
    FolderCheckpointIO().save_checkpoint(
        {"state_dict": trained, "adapter": header_of(architecture)}, folder / "checkpoints" / STEP_FOLDER.format(3)
    )
    write_config(config, folder)
    (folder / "summary.json").write_text(json.dumps({"steps": 3, "val/loss_right": 0.25, "val/loss_right_bin0": 1.0}))
    return MadeRun(folder, architecture.eval())


def export(run: MadeRun, out: Path, *options: str) -> Path:
    """Export a run by the command, and return where to."""
    assert main([str(run.folder), str(out), *options]) == 0
    return out


def with_random_weights(architecture: Architecture) -> Architecture:
    """Return it as if it had been trained."""
    with torch.no_grad():
        for name, parameter in architecture.trainable():
            parameter.copy_(0.1 * normal(parameter.shape, "trained", name))
    return architecture


def inputs(architecture: Architecture) -> tuple[Tensor, Condition]:
    """Return a noisy canvas and a condition."""
    channels, height, width = LATENTS
    canvas = (BATCH, channels, height, width * len(architecture.frames))
    text = TextEmbeddings(normal((BATCH, 5, 64), "text"), normal((BATCH, 64), "pooled"))
    names = {"parallel": "canvas", "text_only": None}
    name = names.get(architecture.name, "latents")
    reference = {} if name is None else {name: normal(canvas, "reference")}
    return normal(canvas, "noisy"), Condition(text, torch.full((BATCH,), 3.5), reference)


TIMES = torch.tensor([0.7, 0.2])


@torch.no_grad()
def predict(architecture: Architecture) -> Tensor:
    """Return the velocity that an architecture predicts for `inputs`."""
    noisy, condition = inputs(architecture)
    return architecture(noisy, TIMES, condition)
