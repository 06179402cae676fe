"""From a folder of weights back to an architecture: what a run starts from, and what a finished run has become."""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from dsd_lightning.architectures.base import Architecture
from dsd_lightning.checkpoints.adapter import HEADER, load_adapter
from dsd_lightning.checkpoints.folder_io import find_last
from dsd_lightning.checkpoints.official import is_official, load_official_folder
from dsd_lightning.flux.base import FluxBase

log = logging.getLogger(__name__)

CONFIG = Path(".hydra") / "config.yaml"
"""Where Hydra notes a run's configuration, within its folder."""


@dataclass(frozen=True)
class Restored:
    """A run as it can be used: its architecture with the trained weights in place, and what it was made with."""

    architecture: Architecture
    base: FluxBase
    config: DictConfig
    checkpoint: Path
    run: Path


def start_from(folder: str | Path, architecture: Architecture) -> None:
    """Put the weights in `folder` into `architecture`: an adapter of ours, or a download of the official weights.

    Raises:
        FileNotFoundError: if the folder is neither, naming what either has.
        AdapterMismatchError, OfficialWeightsError, DamagedError: see there.
    """
    folder = Path(folder)
    if not (folder / HEADER).is_file() and is_official(folder):
        load_official_folder(architecture, folder)
    else:
        load_adapter(folder, architecture)


def find_run(folder: Path) -> tuple[Path, Path]:
    """Return (run folder, whole checkpoint) of a run, or of one of its checkpoints.

    Raises:
        FileNotFoundError: if there is no whole checkpoint.
    """
    if (folder / HEADER).is_file():
        return folder.resolve().parents[1], folder
    checkpoint = find_last(folder / "checkpoints")
    if checkpoint is None:
        raise FileNotFoundError(f"{folder} holds no whole checkpoint (looked in {folder / 'checkpoints'})")
    return folder, checkpoint


def restore(folder: Path, ema: bool = True, base_path: str | None = None) -> Restored:
    """Build the architecture of a run, from its recorded configuration, with the weights it trained.

    Args:
        folder: a run folder, or one of its checkpoint folders.
        ema: the averaged weights rather than the last ones.
        base_path: where the base lies now, if not where the run found it.

    Raises:
        FileNotFoundError: if there is no checkpoint or no recorded configuration.
        BaseModelError, AdapterMismatchError, DamagedError: see there.
    """
    run, checkpoint = find_run(folder)
    if not (run / CONFIG).is_file():
        raise FileNotFoundError(
            f"{run} does not say how its model is built: it has no {CONFIG}; only its adapter can be exported "
            "(--format adapter)"
        )
    loaded: Any = OmegaConf.load(run / CONFIG)
    base: FluxBase = instantiate(loaded.base.model)
    if base_path is not None:
        base = replace(base, path=base_path)
        loaded.base.model.path = base_path
    base.require_parts()
    architecture: Architecture = instantiate(loaded.arch)(transformer=base.transformer())
    started_from = loaded.get("init_from")
    if started_from is not None and not Path(started_from).is_dir():
        raise FileNotFoundError(
            f"{run} started from {started_from}, which is gone; it may have held weights below the trained ones: put it back"
        )
    if started_from is not None and is_official(started_from):
        # They may have replaced the base's own weights, and have brought their factors.
        start_from(started_from, architecture)
    load_adapter(checkpoint, architecture, ema)
    return Restored(architecture.eval(), base, loaded, checkpoint, run)
