"""Reads a checkpoint in two gloo processes that shard its tensors, and notes what each of them read.

`tests/support/models/two_readers.py FOLDER`, by `two_ranks`, writes `FOLDER/read_RANK.json`.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Shard, distribute_tensor

from dsd_lightning.checkpoints import sharded
from dsd_lightning.checkpoints.folder_io import FolderCheckpointIO
from dsd_lightning.files import folders
from support.processes.ranks import take_rank, two_ranks

SHAPES = {"factor": (7, 3), "bias": (5,), "row": (1, 4)}
"""Of the parameters: rows that two processes share unequally, and one row alone."""

DAMAGED = "step_00000003"
"""Name of the checkpoint of which a file is damaged."""


def parameter(name: str) -> Tensor:
    """Return the values of a parameter."""
    return torch.arange(float(torch.Size(SHAPES[name]).numel())).reshape(SHAPES[name])


def checkpoint(values: dict[str, Tensor]) -> dict[str, Any]:
    """Return what Lightning saves of parameters: themselves, EMA weights, and moments by number."""
    names = list(values)
    return {
        "state_dict": values,
        "ema": {name: value + 0.5 for name, value in values.items()},
        "adapter": {},
        "optimizer_states": [
            {
                "state": {i: {"step": torch.tensor(2.0), "exp_avg": values[name] * 2} for i, name in enumerate(names)},
                "param_groups": [{"params": list(range(len(names))), "param_names": names}],
            }
        ],
    }


def main(folder: Path) -> None:
    """Read the sound checkpoints, each as a process reads its part, and then the damaged one."""
    torch.distributed.init_process_group("gloo")
    rank = torch.distributed.get_rank()
    mesh = init_device_mesh("cpu", (2,))
    like = {name: distribute_tensor(parameter(name), mesh, [Shard(0)]) for name in SHAPES}
    files = FolderCheckpointIO(sharded=True)
    files.save_checkpoint(checkpoint(dict(like)), folder / "step_00000002")
    torch.distributed.barrier()
    hashed: list[str] = []
    plain = folders._sha256
    folders._sha256 = lambda file: hashed.append(file.name) or plain(file)  # type: ignore[func-returns-value]
    rows: list[int] = []
    from_rows = sharded.from_rows

    def note(values: Tensor, of: DTensor) -> DTensor:
        rows.append(values.nbytes)
        return from_rows(values, of)

    sharded.from_rows = note
    results: dict[str, Any] = {}
    for name in ("step_00000001", "step_00000002"):
        loaded = files.load_sharded(folder / name, like)
        (state,) = loaded["optimizer_states"]
        gathered = {
            part: {key: value.full_tensor().tolist() for key, value in loaded[part].items()}
            for part in ("state_dict", "ema")
        }
        moments = {number: values["exp_avg"] for number, values in state["state"].items()}
        whole = {n: v.full_tensor() if isinstance(v, DTensor) else v for n, v in moments.items()}
        results[name] = gathered | {
            "moments": {n: value.tolist() for n, value in whole.items()},
            "sharded_moments": [isinstance(value, DTensor) for value in moments.values()],
            "bytes": sum(rows),
            "hashed": sorted(hashed),
        }
        rows.clear()
        hashed.clear()
    try:
        files.load_sharded(folder / DAMAGED, like)
    except folders.DamagedError as error:
        results["error"] = str(error)
    (folder / f"read_{rank}.json").write_text(json.dumps(results))


def two_processes(folder: Path) -> list[dict[str, Any]]:
    """Run it in two processes, and return what each of them noted."""
    launched = two_ranks(__file__, folder)
    assert launched.returncode == 0, launched.stderr[-4000:]
    return [json.loads((folder / f"read_{rank}.json").read_text()) for rank in (0, 1)]


if __name__ == "__main__":
    take_rank()
    torch.set_num_threads(1)
    main(Path(sys.argv[1]))
