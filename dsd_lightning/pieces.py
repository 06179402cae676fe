"""How is a tensor that lies in pieces on several devices read and written as the one tensor that it is?

FSDP2 holds parameters, and what is made from them (gradients, moments, averages), as DTensors. Tensors that are whole on
every device pass through these functions as they are.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor, distribute_tensor


def whole(tensor: Tensor) -> Tensor:
    """Return the whole tensor on every device. All devices must ask for it, in the same order."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def gather(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return whole tensors, those that lay in pieces on the CPU, on the first device; on others, only what was whole.

    One tensor is put together at a time, so that no device ever holds all of them. All devices must ask for it.
    """
    gathered = {}
    for name, tensor in tensors.items():
        value = whole(tensor.detach())
        if not isinstance(tensor, DTensor):
            gathered[name] = value
        elif torch.distributed.get_rank() == 0:
            gathered[name] = value.cpu()
    return gathered


def gather_nested(state: Any) -> Any:
    """Return nested dictionaries and lists with whole tensors, alike; on other devices than the first, None for pieces."""
    if isinstance(state, dict):
        return {key: gather_nested(value) for key, value in state.items()}
    if isinstance(state, list):
        return [gather_nested(value) for value in state]
    return gather({"": state}).get("") if isinstance(state, Tensor) else state


def divided_like(value: Tensor, like: Tensor) -> Tensor:
    """Return the whole `value` on the device of `like` and in pieces as `like` is; every device must have it whole."""
    if not isinstance(like, DTensor) or isinstance(value, DTensor):
        return value.to(like.device)
    return distribute_tensor(value.to(like.device), like.device_mesh, like.placements, src_data_rank=None)
