"""How do several processes write one checkpoint, each the pieces that it holds, and how is it read as a whole?

Where a whole checkpoint has `adapter.safetensors`, one in pieces has `adapter.00000-of-00008.safetensors` and so on, a file
a process; so have averages (`ema`) and whatever else lay in pieces (`pieces`: the optimizer's moments). A tensor's pieces lie
one after the other along its first dimension, as FSDP2 divides it.

Processes tell the first one that their files are on the disk by a small file beside them, and not by a collective: saving
may go on in a thread, while training uses the process group.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from dsd_lightning.files import folders as whole

PIECES = "pieces.safetensors"
"""Name of the file of all pieces that are neither trained values nor averages."""

Place = tuple[str | int, ...]
"""Where in nested dictionaries and lists a tensor was."""


@dataclass(frozen=True)
class Pieces:
    """This process's pieces of the tensors of a checkpoint.

    Attributes:
        own: pieces by where they were taken from; those without values are left out.
        parts: the checkpoint's entries that pieces, this process's or another's, were taken from.
        index: number of this process's files, from 0.
        count: number of processes that hold different pieces.
        writes: False where another process holds equal ones and writes them.
    """

    own: Mapping[Place, Tensor]
    parts: frozenset[str]
    index: int
    count: int
    writes: bool


def take_pieces(checkpoint: dict[str, Any], together: Sequence[str]) -> tuple[dict[str, Any], Pieces | None]:
    """Return the checkpoint without the tensors that lie in pieces, and this process's pieces; None if nothing does.

    Args:
        checkpoint: as one process gives it to be saved.
        together: entries that hold tensors by name, of which none may stay behind: the first process takes whole ones, too.

    Raises:
        ValueError: if a tensor is divided along another dimension than its first, naming it.
    """
    found: dict[Place, DTensor] = {}
    rest = _without(checkpoint, (), found)
    if not found:
        return rest, None
    own: dict[Place, Tensor] = {}
    index, count, writes = 0, 1, True
    for place, tensor in found.items():
        index, count, writes = _layout(place, tensor)
        piece = tensor.to_local().detach()
        if piece.numel():
            own[place] = piece
    for part in together:
        whole_ones = rest.pop(part, None) or {}
        if index == 0:
            own |= {(part, name): tensor for name, tensor in whole_ones.items()}
    return rest, Pieces(own, frozenset(str(place[0]) for place in found), index, count, writes)


def put_back(checkpoint: dict[str, Any], tensors: Mapping[str, Tensor]) -> None:
    """Put tensors back, in place, where `take_pieces` took them from; `tensors` are those of `join(files_of(..., PIECES))`."""
    for key, tensor in tensors.items():
        *path, last = json.loads(key)
        place: Any = checkpoint
        for step in path:
            place = place[step]
        place[last] = tensor


def write_own(folder: Path, pieces: Pieces, names: Mapping[str, str]) -> None:
    """Write this process's files into the folder that is being filled, and say so.

    Args:
        folder: shared by all processes.
        pieces: of `take_pieces`.
        names: which file each entry of the checkpoint goes to; all others go to `PIECES`.
    """
    told = folder / _told(pieces.index)
    try:
        files: dict[str, dict[str, Tensor]] = {_numbered(names.get(part, PIECES), pieces): {} for part in pieces.parts}
        for place, piece in pieces.own.items():
            part = str(place[0])
            key = str(place[1]) if part in names else json.dumps(place)
            files[_numbered(names.get(part, PIECES), pieces)][key] = piece
        for name, tensors in files.items():
            whole.write_tensors(folder / name, tensors)
        whole.write_json_atomically(told, {name: whole.describe(folder / name) for name in files})
    except BaseException as error:
        if pieces.index and folder.is_dir():
            whole.write_json_atomically(told, {"error": f"{type(error).__name__}: {error}"})
        raise


def wait_for_all(folder: Path, count: int, timeout: float) -> dict[str, Any]:
    """Wait until every process has written its files, and return what each file is, by name.

    Args:
        folder: that is being filled.
        count: number of processes that write.
        timeout: seconds.

    Raises:
        RuntimeError: if a process could not write its files, with its reason.
        TimeoutError: naming the processes that have not written theirs.
    """
    until = time.monotonic() + timeout
    known: dict[str, Any] = {}
    waiting = list(range(count))
    while waiting:
        for index in [each for each in waiting if (folder / _told(each)).is_file()]:
            facts = whole.read_json(folder / _told(index))
            if "error" in facts:
                raise RuntimeError(f"{folder}: process {index} could not write its pieces: {facts['error']}")
            known |= facts
            (folder / _told(index)).unlink()
            waiting.remove(index)
        if waiting and time.monotonic() > until:
            raise TimeoutError(
                f"{folder}: no pieces from processes {waiting} in {timeout:g} s; all processes must write to one file system"
            )
        if waiting:
            time.sleep(0.05)
    return known


def files_of(folder: Path, name: str) -> list[Path]:
    """Return the file `name` of a checkpoint, or the files in pieces that stand for it, in order; empty if there are none.

    Raises:
        DamagedError: if one of several is missing.
    """
    if (folder / name).is_file():
        return [folder / name]
    stem, ending = name.split(".")
    files = sorted(folder.glob(f"{stem}.*-of-*.{ending}"))
    count = int(files[0].name.split("-of-")[1].split(".")[0]) if files else 0
    if len(files) != count:
        raise whole.DamagedError(f"{folder} holds {len(files)} of the {count} pieces of {name}")
    return files


def join(files: Sequence[Path]) -> dict[str, Tensor]:
    """Return the whole tensors of files in pieces, on the CPU.

    Raises:
        DamagedError: naming the file that cannot be read.
    """
    pieces: dict[str, list[Tensor]] = {}
    for file in files:
        for name, piece in whole.read_tensors(file).items():
            pieces.setdefault(name, []).append(piece)
    return {name: each[0] if len(each) == 1 else torch.cat(each) for name, each in pieces.items()}


def _without(value: Any, place: Place, found: dict[Place, DTensor]) -> Any:
    if isinstance(value, DTensor):
        found[place] = value
        return None
    if isinstance(value, dict):
        items = {key: _without(item, (*place, key), found) for key, item in value.items()}
        return {key: item for key, item in items.items() if (*place, key) not in found}
    if isinstance(value, list):
        return [_without(item, (*place, index), found) for index, item in enumerate(value)]
    return value


def _layout(place: Place, tensor: DTensor) -> tuple[int, int, bool]:
    """Return the number of this process's piece, how many there are, and whether this process is to write its own."""
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
                f"{where} is placed as {placement}, which cannot be saved in pieces: checkpoint_io.sharded=false"
            )
    return index, count, writes


def _numbered(name: str, pieces: Pieces) -> str:
    stem, ending = name.split(".")
    return f"{stem}.{pieces.index:05d}-of-{pieces.count:05d}.{ending}"


def _told(index: int) -> str:
    return f"process-{index:05d}.json"
