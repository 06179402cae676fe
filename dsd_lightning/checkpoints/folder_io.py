"""Reads and writes the checkpoint folders of a run, and finds the last one that is undamaged.

A checkpoint is a folder `step_00000200/` with

- `adapter.safetensors`: the trained parameters (`checkpoint["state_dict"]`);
- `ema.safetensors`: their EMA weights (`checkpoint["ema"]`), if there are any;
- `adapter.json`: which architecture and settings they belong to;
- `training_state.pt`: everything else that resuming needs: optimizer, schedule, loops, position in the data, callbacks;
- `manifest.json`: the size and sha256 of every file; written last.

A sharded checkpoint has numbered files instead of the first two; see `sharded`.
"""

from __future__ import annotations

import json
import logging
import re
import shutil
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from lightning.fabric.plugins.io.checkpoint_io import CheckpointIO
from torch import Tensor

from dsd_lightning.checkpoints import sharded
from dsd_lightning.checkpoints.adapter import EMA_WEIGHTS, HEADER, WEIGHTS
from dsd_lightning.checkpoints.background import Background
from dsd_lightning.compute import processes
from dsd_lightning.files import atomic, folders

log = logging.getLogger(__name__)

TRAINING_STATE = "training_state.pt"
STEP_FOLDER = "step_{:08d}"

FILES = {"state_dict": WEIGHTS, "ema": EMA_WEIGHTS}
"""Parts of a checkpoint that have a file of their own."""

_STEP = re.compile(rf"step_(\d{{8,}})({re.escape(folders.ASIDE)})?")
_VERIFIED: dict[Path, tuple[Any, ...]] = {}
"""Folders that this process has checked: name, size and time of writing of each file, as it was then."""

_PLAIN = (type(None), bool, int, float, complex, str, bytes, Tensor, torch.Size, torch.dtype, torch.device)


class FolderCheckpointIO(CheckpointIO):
    """Lets Lightning's Trainer save to and resume from checkpoint folders: `Trainer(plugins=[FolderCheckpointIO()])`.

    Args:
        background: True copies what is to be saved to the CPU's memory and writes it in a thread while training goes on; the
            next save, `remove_checkpoint`, `load_checkpoint` and `wait` come after it. An error is raised by the next of them.
        sharded: True lets each process of a ShardedStrategy write its own shards, instead of the first one all.
        timeout_minutes: for which the first process waits for the shards of the others.
    """

    def __init__(self, background: bool = False, sharded: bool = False, timeout_minutes: float = 30.0) -> None:
        if timeout_minutes <= 0:
            raise ValueError(f"checkpoint_io.timeout_minutes={timeout_minutes} must be above 0")
        self.background, self.sharded, self.timeout = background, sharded, 60.0 * timeout_minutes
        self._thread = Background()

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any | None = None) -> None:
        """Write a checkpoint folder; whatever interrupts this leaves the earlier ones usable.

        With sharded tensors every process must call it, with the same path.

        Raises:
            TypeError: if the state holds other than tensors and plain types, naming where.
        """
        if storage_options is not None:
            raise TypeError("FolderCheckpointIO writes to local folders and takes no storage_options")
        self.wait()
        rest, shards = sharded.take_shards(checkpoint, tuple(FILES)) if self.sharded else (dict(checkpoint), None)
        _require_plain({key: value for key, value in rest.items() if key not in (*FILES, "adapter")}, "checkpoint")
        if shards is not None:
            processes.on_first(partial(folders.begin, Path(path)))
        if self.background:
            rest = _copied(rest)
            shards = shards and replace(shards, own=_copied(shards.own))
        job = partial(self._write, Path(path), rest, shards)
        if self.background:
            self._thread.submit(job)
        else:
            job()

    def _write(self, path: Path, rest: dict[str, Any], shards: sharded.Shards | None) -> None:
        if shards is None:
            with folders.atomic_folder(path) as folder:
                _write_rest(folder, rest)
            return
        folder = folders.partial_of(path)
        if shards.writes:
            sharded.write_own(folder, shards, FILES)
        if processes.is_first():
            _write_rest(folder, rest)
            folders.commit(path, sharded.wait_for_all(folder, shards.count, self.timeout))

    def load_checkpoint(
        self, path: str | Path, map_location: Any | None = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Return a checkpoint, all-gathered on the CPU, after checking every file of it.

        Only tensors and plain types are read, whatever `weights_only` says: a checkpoint runs no code. Files are mapped into
        memory, so that the processes of a machine share what is read. If several processes are connected, all must call it;
        they read the checkpoint that the first one names, which alone reads all files to check them.

        Raises:
            FileNotFoundError: if `path` is no folder.
            DamagedError: naming the missing or changed file; by all processes alike.
        """
        return self.load_sharded(path, {})

    def load_sharded(self, path: str | Path, like: Mapping[str, Tensor]) -> dict[str, Any]:
        """Return a checkpoint as `load_checkpoint` does, but of what is sharded here only this process's part.

        Args:
            path: the folder.
            like: the trained parameters by name; those of a checkpoint, their EMA weights and their moments come sharded as
                these are, on their device.
        """
        self.wait()
        folder = processes.of_first(Path(path))
        processes.on_first(partial(_verify, folder))
        try:
            checkpoint: dict[str, Any] = torch.load(
                folder / TRAINING_STATE, map_location="cpu", weights_only=True, mmap=True
            )
        except (UnpicklingError, RuntimeError, OSError) as error:
            raise folders.DamagedError(f"{folder / TRAINING_STATE} cannot be read: {error}") from error
        for part, name in FILES.items():
            if files := sharded.files_of(folder, name):
                checkpoint[part] = sharded.read(files, like.get)
        state = sharded.files_of(folder, sharded.SHARDED_STATE)
        sharded.put_back(checkpoint, sharded.read(state, partial(_parameter_of, checkpoint, like)))
        checkpoint["adapter"] = folders.read_json(folder / HEADER)
        return dict(checkpoint)

    def remove_checkpoint(self, path: str | Path) -> None:
        """Remove a checkpoint folder; its manifest goes first, so that what is left over is never taken for folders.

        While a save is being written, that is done after it, and only if it succeeds.
        """
        if self._thread.busy:
            self._thread.submit(partial(_remove, Path(path)))
        else:
            _remove(Path(path))

    def wait(self) -> None:
        """Return when every save is on the disk; raise the error of one that failed."""
        self._thread.wait()

    def teardown(self) -> None:
        """Wait."""
        self.wait()


def _write_rest(folder: Path, rest: Mapping[str, Any]) -> None:
    rest = dict(rest)
    for part, name in FILES.items():
        if tensors := rest.pop(part, None):
            folders.write_tensors(folder / name, tensors)
    atomic.write_json(folder / HEADER, rest.pop("adapter", {}))
    with (folder / TRAINING_STATE).open("wb") as file:
        torch.save(rest, file)
        atomic.flush(file)


def _verify(folder: Path) -> None:
    """Check a checkpoint's folder, unless this process has done so since its files were last written."""
    if not folder.is_dir():
        raise FileNotFoundError(
            f"{folder} is no checkpoint folder; give one like outputs/.../checkpoints/{STEP_FOLDER.format(200)}, "
            "or ckpt=last for the newest complete one of this run"
        )
    written = tuple(sorted((file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in folder.iterdir()))
    if _VERIFIED.get(folder.absolute()) != written:
        folders.verify(folder)
        _VERIFIED[folder.absolute()] = written


def _parameter_of(checkpoint: Mapping[str, Any], like: Mapping[str, Tensor], key: str) -> Tensor | None:
    """Return the parameter whose moment is at the place `key` of a checkpoint (`sharded.put_back`), if there is one."""
    place = json.loads(key)
    if place[0] != "optimizer_states" or place[2] != "state":
        return None
    for group in checkpoint["optimizer_states"][place[1]]["param_groups"]:
        if place[3] in group["params"] and "param_names" in group:
            return like.get(group["param_names"][group["params"].index(place[3])])
    return None


def _remove(folder: Path) -> None:
    if folder.is_dir():
        (folder / folders.MANIFEST).unlink(missing_ok=True)
        shutil.rmtree(folder)


def _copied(value: Any) -> Any:
    """Return nested dictionaries and lists with copies of their tensors on the CPU."""
    if isinstance(value, Tensor):
        return value.detach().to("cpu", copy=True)
    if isinstance(value, Mapping):
        return {key: _copied(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set):
        return type(value)(_copied(item) for item in value)
    return value


def list_steps(folder: str | Path) -> dict[int, Path]:
    """Return the committed checkpoints in a folder by step, the oldest first; they are not verified.

    One that was being replaced by another of the same step when the process was killed counts too.
    """
    folder = Path(folder)
    steps: dict[int, Path] = {}
    for child in sorted(folder.iterdir()) if folder.is_dir() else ():
        match = _STEP.fullmatch(child.name)
        if match and child.is_dir() and (not match.group(2) or int(match.group(1)) not in steps):
            steps[int(match.group(1))] = child
    return dict(sorted(steps.items()))


def find_last(folder: str | Path, *, contents: bool = True) -> Path | None:
    """Return the newest complete checkpoint in a folder, or None if there is none.

    Every file's sha256 is checked; without `contents` no more than its size. Newer ones that are damaged or unfinished are
    skipped, with a warning.
    """
    committed = list_steps(folder)
    for leftover in sorted(Path(folder).glob(f"step_*{atomic.PARTIAL}")):
        log.warning("skipping %s: its save was interrupted", leftover)
    check = _verify if contents else partial(folders.verify, contents=False)
    for step in reversed(committed):
        try:
            check(committed[step])
        except folders.DamagedError as error:
            log.warning("skipping a checkpoint: %s", error)
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
