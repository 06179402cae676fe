"""All-gathers sharded tensors (DTensors), and shards whole ones.

FSDP2 holds parameters, and what is computed from them (gradients, moments, EMA weights), as DTensors. Tensors that are not
sharded pass through these functions as they are.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.distributed.tensor._utils import compute_local_shape_and_global_offset


def full_tensor(tensor: Tensor) -> Tensor:
    """Return the all-gathered tensor on every device. All devices must call it, in the same order."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def gather_nested(state: Any) -> Any:
    """Return nested dictionaries and lists whose sharded tensors are all-gathered on the CPU of the first device.

    On other devices None replaces them. One tensor is gathered at a time, so that no device ever holds all of them. All
    devices must call it.
    """
    if isinstance(state, dict):
        return {key: gather_nested(value) for key, value in state.items()}
    if isinstance(state, list):
        return [gather_nested(value) for value in state]
    if not isinstance(state, DTensor):
        return state
    value = full_tensor(state.detach())
    return value.cpu() if torch.distributed.get_rank() == 0 else None


def own_rows(like: DTensor) -> slice | None:
    """Return which part of the first dimension of `like` this device holds; None where it is sharded along another."""
    if not all(each.is_replicate() or each.is_shard(0) for each in like.placements):
        return None
    shape, start = compute_local_shape_and_global_offset(like.shape, like.device_mesh, like.placements)
    return slice(start[0], start[0] + shape[0])


def from_rows(rows: Tensor, like: DTensor) -> DTensor:
    """Return the sharded tensor of which this device holds a copy of `rows`, the part that `own_rows(like)` names."""
    local = rows.to(like.device, copy=True)
    return DTensor.from_local(
        local, like.device_mesh, like.placements, run_check=False, shape=like.shape, stride=like.stride()
    )


def sharded_like(value: Tensor, like: Tensor) -> Tensor:
    """Return `value`, which every device can read in full, on the device of `like` and sharded as `like` is.

    Of a value in a file that is mapped into memory, only this device's part is read.
    """
    if not isinstance(like, DTensor) or isinstance(value, DTensor):
        return value.to(like.device)
    rows = own_rows(like)
    if rows is None:
        return distribute_tensor(value.to(like.device), like.device_mesh, like.placements, src_data_rank=None)
    return from_rows(value[rows], like)
