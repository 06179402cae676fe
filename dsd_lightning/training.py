"""A training run from its configuration: what is built, in which order, and what is refused before anything is loaded."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import lightning as L
import torch
from hydra.utils import instantiate
from omegaconf import DictConfig

from dsd_lightning.architectures.base import Architecture
from dsd_lightning.checkpoints.adapter import load_adapter
from dsd_lightning.checkpoints.folder_io import FolderCheckpointIO, find_last
from dsd_lightning.flux.base import FluxBase
from dsd_lightning.module import DiffusionSelfDistillation
from dsd_lightning.rectified_flow import ResolutionShift
from dsd_lightning.sampler import Shift

log = logging.getLogger(__name__)


def shift_of_base(base: FluxBase) -> ResolutionShift:
    """Return the timestep shift that the base's scheduler asks for (`shift=resolution`)."""
    return base.resolution_shift()


def build_module(config: DictConfig) -> DiffusionSelfDistillation:
    """Return the module of a configuration, complete: base loaded, reference parts added, factors attached."""
    base: FluxBase = instantiate(config.base.model)
    base.require_parts()
    shift: Any = instantiate(config.shift)
    if not isinstance(shift, Shift):
        shift = shift(base)
    torch.manual_seed(config.seed)
    architecture: Architecture = instantiate(config.arch)(transformer=base.transformer())
    if config.init_from is not None:
        load_adapter(config.init_from, architecture)
    trained = sum(parameter.numel() for _, parameter in architecture.trainable())
    if trained == 0:
        raise ValueError("nothing would be trained: give arch.lora, or arch.train_base=true")
    log.info("%s on %s: %s parameters are trained", architecture.name, base.path, f"{trained:,}")
    return DiffusionSelfDistillation(
        architecture=architecture,
        codec=base.codec(),
        text_encoder=base.text_encoder(),
        task=instantiate(config.task.relation),
        density=instantiate(config.density),
        shift=shift,
        dropout=instantiate(config.dropout),
        optimizer=instantiate(config.optimizer),
        schedule=instantiate(config.schedule),
        guidance_scale=base.guidance_scale,
        sampler=instantiate(config.sampler),
        seed=config.seed,
    )


def find_checkpoint(ckpt: str | None, run_dir: Path) -> Path | None:
    """Return the checkpoint folder that `ckpt` names, or None to start anew.

    Raises:
        FileNotFoundError: if there is none, naming what was looked for and where.
    """
    if ckpt is None:
        return None
    found = find_last(run_dir / "checkpoints") if ckpt == "last" else Path(ckpt)
    if found is None:
        raise FileNotFoundError(
            f"ckpt=last, but {run_dir / 'checkpoints'} holds no whole checkpoint; start anew with ckpt=null, or name a "
            "checkpoint folder"
        )
    if not found.is_dir():
        raise FileNotFoundError(f"ckpt={ckpt}: no such checkpoint folder")
    return found


def train(config: DictConfig, run_dir: Path) -> dict[str, float]:
    """Run the configured training in `run_dir` and return the figures of its summary."""
    L.seed_everything(config.seed, workers=True, verbose=False)
    checkpoint = find_checkpoint(config.ckpt, run_dir)
    module = build_module(config)
    data: L.LightningDataModule = instantiate(config.data.datamodule)
    callbacks = [instantiate(each) for each in config.callbacks.values() if each is not None]
    loggers = [instantiate(each) for each in config.logger.values() if each is not None]
    trainer: L.Trainer = instantiate(
        config.trainer, callbacks=callbacks, logger=loggers or False, plugins=[FolderCheckpointIO()]
    )
    trainer.fit(module, datamodule=data, ckpt_path=str(checkpoint) if checkpoint else None)
    return dict(getattr(module, "summary", {}))


HEADLINES = (
    "identity_accuracy_before",
    "identity_accuracy",
    "prompt_accuracy",
    "copy_paste",
    "reference_psnr",
    "seconds",
)


def report(run_dir: Path) -> str:
    """Return where the results of a finished run lie, and its headline figures."""
    path = run_dir / "summary.json"
    figures = json.loads(path.read_text()) if path.exists() else {}
    lines = [f"run folder    {run_dir}"]
    sheets = sorted((run_dir / "samples").glob("step_*.png"))
    if sheets:
        lines.append(f"sample sheet  {sheets[-1]}")
    if figures:
        lines.append(f"figures       {path}")
    lines += [f"  {name:<26}{figures[name]:.4g}" for name in HEADLINES if name in figures]
    return "\n".join(lines)
