"""Writes a sharded checkpoint, each process its own shards, and reads it, all-gathered or each process its own part.

Where a checkpoint of one process has `adapter.safetensors`, a sharded one has `adapter.00000-of-00008.safetensors` and so
on, a file a process; so have EMA weights (`ema`) and what else is sharded (`training_state`: the optimizer's moments). The
shards of a tensor follow one another along its first dimension, as FSDP2 divides it.

Processes report to the first one that their files are on the disk by a small file beside them, and not by a collective:
saving may go on in a thread, while training uses the process group.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from dsd_lightning.compute.dtensors import from_rows, own_rows
from dsd_lightning.files.atomic import write_json
from dsd_lightning.files.folders import DamagedError, describe, opened_tensors, read_json, write_tensors

SHARDED_STATE = "training_state.safetensors"
"""Name of the file of all shards that are neither trained weights nor EMA weights."""

Place = tuple[str | int, ...]
"""Where in nested dictionaries and lists a tensor was."""


@dataclass(frozen=True)
class Shards:
    """This process's shards of the tensors of a checkpoint.

    Attributes:
        own: shards by where they were taken from; those without values are left out.
        parts: the checkpoint's entries that shards, this process's or another's, were taken from.
        index: number of this process's files, from 0.
        count: number of processes that hold different shards.
        writes: False where another process holds equal ones and writes them.
    """

    own: Mapping[Place, Tensor]
    parts: frozenset[str]
    index: int
    count: int
    writes: bool


def take_shards(checkpoint: dict[str, Any], together: Sequence[str]) -> tuple[dict[str, Any], Shards | None]:
    """Return the checkpoint without its sharded tensors, and this process's shards; None if nothing is sharded.

    Args:
        checkpoint: as one process gives it to be saved.
        together: entries of tensors by name, of which none may stay behind: the first process takes unsharded ones, too.

    Raises:
        ValueError: if a tensor is sharded along another dimension than its first, naming it.
    """
    sharded: dict[Place, DTensor] = {}
    rest = _without(checkpoint, (), sharded)
    if not sharded:
        return rest, None
    own: dict[Place, Tensor] = {}
    index, count, writes = 0, 1, True
    for place, tensor in sharded.items():
        index, count, writes = _layout(place, tensor)
        shard = tensor.to_local().detach()
        if shard.numel():
            own[place] = shard
    for part in together:
        unsharded = rest.pop(part, None) or {}
        if index == 0:
            own |= {(part, name): tensor for name, tensor in unsharded.items()}
    return rest, Shards(own, frozenset(str(place[0]) for place in sharded), index, count, writes)


def put_back(checkpoint: dict[str, Any], tensors: Mapping[str, Tensor]) -> None:
    """Put the tensors of `read(files_of(..., SHARDED_STATE))` back, in place, where `take_shards` took them from."""
    for key, tensor in tensors.items():
        *path, last = json.loads(key)
        place: Any = checkpoint
        for step in path:
            place = place[step]
        place[last] = tensor


def write_own(folder: Path, shards: Shards, names: Mapping[str, str]) -> None:
    """Write this process's files into the folder that is being filled, and report it.

    Args:
        folder: shared by all processes.
        shards: of `take_shards`.
        names: which file each entry of the checkpoint goes to; all others go to `SHARDED_STATE`.
    """
    report = folder / _report(shards.index)
    try:
        files: dict[str, dict[str, Tensor]] = {
            _numbered(names.get(part, SHARDED_STATE), shards): {} for part in shards.parts
        }
        for place, shard in shards.own.items():
            part = str(place[0])
            key = str(place[1]) if part in names else json.dumps(place)
            files[_numbered(names.get(part, SHARDED_STATE), shards)][key] = shard
        for name, tensors in files.items():
            write_tensors(folder / name, tensors)
        write_json(report, {name: describe(folder / name) for name in files})
    except BaseException as error:
        if shards.index and folder.is_dir():
            write_json(report, {"error": f"{type(error).__name__}: {error}"})
        raise


def wait_for_all(folder: Path, count: int, timeout: float) -> dict[str, Any]:
    """Wait until every process has written its files, and return what `describe` returned of each, by name.

    Args:
        folder: that is being filled.
        count: number of processes that write.
        timeout: seconds.

    Raises:
        RuntimeError: if a process could not write its files, with its reason.
        TimeoutError: naming the processes that have not written theirs.
    """
    until = time.monotonic() + timeout
    described: dict[str, Any] = {}
    waiting = list(range(count))
    while waiting:
        for index in [each for each in waiting if (folder / _report(each)).is_file()]:
            facts = read_json(folder / _report(index))
            if "error" in facts:
                raise RuntimeError(f"{folder}: process {index} could not write its shards: {facts['error']}")
            described |= facts
            (folder / _report(index)).unlink()
            waiting.remove(index)
        if waiting and time.monotonic() > until:
            raise TimeoutError(
                f"{folder}: no shards from processes {waiting} in {timeout:g} s; all processes must write to one file system"
            )
        if waiting:
            time.sleep(0.05)
    return described


def files_of(folder: Path, name: str) -> list[Path]:
    """Return the file `name` of a checkpoint, or the files of its shards, in order; empty if there are none.

    Raises:
        DamagedError: if one of several is missing.
    """
    if (folder / name).is_file():
        return [folder / name]
    stem, ending = name.split(".")
    files = sorted(folder.glob(f"{stem}.*-of-*.{ending}"))
    count = int(files[0].name.split("-of-")[1].split(".")[0]) if files else 0
    if len(files) != count:
        raise DamagedError(f"{folder} holds {len(files)} of the {count} shards of {name}")
    return files


def read(files: Sequence[Path], like: Callable[[str], Tensor | None] = lambda name: None) -> dict[str, Tensor]:
    """Return the tensors of files of shards; of one that is sharded here, too, only this process's part is read.

    Args:
        files: of `files_of`, in their order.
        like: returns the tensor that one of a name is to be sharded as, if there is any. All others are returned in full, on
            the CPU; those in one file alone stay in it, mapped into memory, until they are used.

    Raises:
        DamagedError: naming the file that cannot be read.
    """
    with ExitStack() as stack:
        opened = [stack.enter_context(opened_tensors(file)) for file in files]
        parts: dict[str, list[Any]] = {}
        for file in opened:
            for name in file.keys():  # noqa: SIM118 - no mapping
                parts.setdefault(name, []).append(file)
        return {name: _read_one(name, holders, like(name)) for name, holders in parts.items()}


def _read_one(name: str, holders: Sequence[Any], like: Tensor | None) -> Tensor:
    """Return a tensor of open files that each hold some of its rows, sharded as `like` if that has its shape."""
    shapes = [tuple(file.get_slice(name).get_shape()) for file in holders]
    rows = own_rows(like) if isinstance(like, DTensor) and like.shape == _joined(shapes) else None
    if rows is None or not isinstance(like, DTensor):
        shards = [file.get_tensor(name) for file in holders]
        return shards[0] if len(shards) == 1 else torch.cat(shards)
    own, first = [], 0
    for file, shape in zip(holders, shapes, strict=True):
        start, stop = max(rows.start - first, 0), min(rows.stop - first, shape[0])
        if start < stop:
            own.append(file.get_slice(name)[start:stop])
        first += shape[0]
    if not own:  # fewer rows than processes
        own = [holders[0].get_slice(name)[:1][:0]]
    return from_rows(own[0] if len(own) == 1 else torch.cat(own), like)


def _joined(shapes: Sequence[tuple[int, ...]]) -> torch.Size:
    """Return the shape of tensors that follow one another along the first dimension."""
    return torch.Size((sum(shape[0] for shape in shapes), *shapes[0][1:])) if shapes[0] else torch.Size(())


def _without(value: Any, place: Place, sharded: dict[Place, DTensor]) -> Any:
    if isinstance(value, DTensor):
        sharded[place] = value
        return None
    if isinstance(value, dict):
        items = {key: _without(item, (*place, key), sharded) for key, item in value.items()}
        return {key: item for key, item in items.items() if (*place, key) not in sharded}
    if isinstance(value, list):
        return [_without(item, (*place, index), sharded) for index, item in enumerate(value)]
    return value


def _layout(place: Place, tensor: DTensor) -> tuple[int, int, bool]:
    """Return the number of this process's shard, how many there are, and whether this process writes its own."""
    mesh = tensor.device_mesh
    coordinate = mesh.get_coordinate() or [0] * mesh.ndim
    index, count, writes = 0, 1, True
    for dimension, placement in enumerate(tensor.placements):
        if placement.is_shard(0):
            index, count = coordinate[dimension], mesh.size(dimension)
        elif placement.is_replicate():
            writes = writes and coordinate[dimension] == 0
        else:
            where = "/".join(map(str, place))
            raise ValueError(
                f"{where} is placed as {placement}, which cannot be saved as shards: checkpoint_io.sharded=false"
            )
    return index, count, writes


def _numbered(name: str, shards: Shards) -> str:
    stem, ending = name.split(".")
    return f"{stem}.{shards.index:05d}-of-{shards.count:05d}.{ending}"


def _report(index: int) -> str:
    return f"process-{index:05d}.json"
