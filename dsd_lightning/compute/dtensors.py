"""All-gathers sharded tensors (DTensors), and shards whole ones.

FSDP2 holds parameters, and what is computed from them (gradients, moments, EMA weights), as DTensors. Tensors that are not
sharded pass through these functions as they are.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor, distribute_tensor


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


def sharded_like(value: Tensor, like: Tensor) -> Tensor:
    """Return `value`, which every device has in full, on the device of `like` and sharded as `like` is."""
    if not isinstance(like, DTensor) or isinstance(value, DTensor):
        return value.to(like.device)
    return distribute_tensor(value.to(like.device), like.device_mesh, like.placements, src_data_rank=None)
