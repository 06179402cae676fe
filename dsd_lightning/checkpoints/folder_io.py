"""How does a checkpoint of a run lie on the disk, and which one is the last that can be trusted?

A checkpoint is a folder `step_00000200/` with

- `adapter.safetensors`: the trained parameters (`checkpoint["state_dict"]`);
- `ema.safetensors`: their averages (`checkpoint["ema"]`), if there are any;
- `adapter.json`: which architecture and settings they belong to;
- `training_state.pt`: everything else that resuming needs: optimizer, schedule, loops, position in the data, callbacks;
- `manifest.json`: the size and sha256 of every file; written last.
"""

from __future__ import annotations

import logging
import re
import shutil
from collections import OrderedDict
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from lightning.fabric.plugins.io.checkpoint_io import CheckpointIO
from torch import Tensor

from dsd_lightning.checkpoints import whole
from dsd_lightning.checkpoints.adapter import EMA_WEIGHTS, HEADER, WEIGHTS, read_tensors

log = logging.getLogger(__name__)

TRAINING_STATE = "training_state.pt"
STEP_FOLDER = "step_{:08d}"

_STEP = re.compile(rf"step_(\d{{8,}})({re.escape(whole.ASIDE)})?")
_PLAIN = (type(None), bool, int, float, complex, str, bytes, Tensor, torch.Size, torch.dtype, torch.device)


class FolderCheckpointIO(CheckpointIO):
    """Lets Lightning's Trainer save to and resume from checkpoint folders: `Trainer(plugins=[FolderCheckpointIO()])`."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any | None = None) -> None:
        """Write a checkpoint folder; whatever interrupts this leaves the earlier ones usable.

        Raises:
            TypeError: if the state holds other than tensors and plain types, naming where.
        """
        if storage_options is not None:
            raise TypeError("FolderCheckpointIO writes to local folders and knows no storage_options")
        rest = dict(checkpoint)
        weights, averages, header = rest.pop("state_dict"), rest.pop("ema", None), rest.pop("adapter", {})
        _require_plain(rest, "checkpoint")
        with whole.whole_folder(Path(path)) as folder:
            whole.write_tensors(folder / WEIGHTS, weights)
            if averages:
                whole.write_tensors(folder / EMA_WEIGHTS, averages)
            whole.write_json(folder / HEADER, header)
            with (folder / TRAINING_STATE).open("wb") as file:
                torch.save(rest, file)
                whole.flush(file)

    def load_checkpoint(
        self, path: str | Path, map_location: Any | None = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Return a checkpoint after checking every file of it.

        Only tensors and plain types are read, whatever `weights_only` says: a checkpoint runs no code.

        Raises:
            FileNotFoundError: if `path` is no folder.
            DamagedError: naming the missing or changed file.
        """
        folder = Path(path)
        if not folder.is_dir():
            raise FileNotFoundError(
                f"{folder} is no checkpoint folder; give one like outputs/.../checkpoints/{STEP_FOLDER.format(200)}, "
                "or ckpt=last for the newest whole one of this run"
            )
        whole.verify(folder)
        try:
            checkpoint = torch.load(folder / TRAINING_STATE, map_location=map_location or "cpu", weights_only=True)
        except (UnpicklingError, RuntimeError, OSError) as error:
            raise whole.DamagedError(f"{folder / TRAINING_STATE} cannot be read: {error}") from error
        checkpoint["state_dict"] = read_tensors(folder / WEIGHTS)
        if (folder / EMA_WEIGHTS).exists():
            checkpoint["ema"] = read_tensors(folder / EMA_WEIGHTS)
        checkpoint["adapter"] = whole.read_json(folder / HEADER)
        return dict(checkpoint)

    def remove_checkpoint(self, path: str | Path) -> None:
        """Remove a checkpoint folder; its manifest goes first, so that what is left over is never taken for whole."""
        folder = Path(path)
        if folder.is_dir():
            (folder / whole.MANIFEST).unlink(missing_ok=True)
            shutil.rmtree(folder)


def list_steps(folder: str | Path) -> dict[int, Path]:
    """Return the committed checkpoints in a folder by step, the oldest first; they are not verified.

    One that was being replaced by another of the same step when the process was killed counts too.
    """
    folder = Path(folder)
    found = {}
    for child in sorted(folder.iterdir()) if folder.is_dir() else ():
        match = _STEP.fullmatch(child.name)
        if match and child.is_dir() and (not match.group(2) or int(match.group(1)) not in found):
            found[int(match.group(1))] = child
    return dict(sorted(found.items()))


def find_last(folder: str | Path) -> Path | None:
    """Return the newest whole checkpoint in a folder, or None if there is none.

    Every file's sha256 is checked. Each damaged or unfinished one that is newer is named in a warning.
    """
    committed = list_steps(folder)
    for leftover in sorted(Path(folder).glob(f"step_*{whole.PARTIAL}")):
        log.warning("passing over %s: its save was interrupted", leftover)
    for step in reversed(committed):
        try:
            whole.verify(committed[step])
        except whole.DamagedError as error:
            log.warning("passing over a checkpoint: %s", error)
        else:
            return committed[step]
    return None


def _require_plain(value: Any, where: str) -> None:
    if type(value) in (dict, OrderedDict):
        for key, item in value.items():
            _require_plain(item, f"{where}[{key!r}]")
    elif type(value) in (list, tuple, set):
        for index, item in enumerate(value):
            _require_plain(item, f"{where}[{index}]")
    elif not isinstance(value, _PLAIN) or type(value).__module__.startswith("numpy"):
        raise TypeError(
            f"{where} is a {type(value).__module__}.{type(value).__qualname__}; a checkpoint holds tensors and plain "
            "types only (so that loading it runs no code): convert it in the state_dict that returns it"
        )
