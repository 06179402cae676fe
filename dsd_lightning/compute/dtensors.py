"""How is a tensor that lies in pieces on several devices read and written as the one tensor that it is?

FSDP2 holds parameters, and what is made from them (gradients, moments, averages), as DTensors. Tensors that are whole on
every device pass through these functions as they are.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor, distribute_tensor


def whole(tensor: Tensor) -> Tensor:
    """Return the whole tensor on every device. All devices must ask for it, in the same order."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def gather_nested(state: Any) -> Any:
    """Return nested dictionaries and lists with whole tensors, those that lay in pieces on the CPU of the first device.

    On other devices None stands for what lay in pieces. One tensor is put together at a time, so that no device ever holds
    all of them. All devices must ask for it.
    """
    if isinstance(state, dict):
        return {key: gather_nested(value) for key, value in state.items()}
    if isinstance(state, list):
        return [gather_nested(value) for value in state]
    if not isinstance(state, DTensor):
        return state
    value = whole(state.detach())
    return value.cpu() if torch.distributed.get_rank() == 0 else None


def sharded_like(value: Tensor, like: Tensor) -> Tensor:
    """Return the whole `value` on the device of `like` and in pieces as `like` is; every device must have it whole."""
    if not isinstance(like, DTensor) or isinstance(value, DTensor):
        return value.to(like.device)
    return distribute_tensor(value.to(like.device), like.device_mesh, like.placements, src_data_rank=None)
