"""Refuses tensors that hold NaN or infinite values, before images or encodings are made of them."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor


class NonFiniteError(ValueError):
    """NaN or infinite values; the message names where, and the remedy."""


def require_finite(tensors: Mapping[str, Tensor], what: str, remedy: str) -> None:
    """Refuse the first tensor with a value that is not finite; those of whole numbers or 8 bits are not looked at.

    Of sharded tensors each device looks at its own part.

    Args:
        tensors: by name, on any device.
        what: what they are, for the message.
        remedy: what to do, for the message.

    Raises:
        NonFiniteError: naming the tensor.
    """
    for name, tensor in tensors.items():
        own = tensor.to_local() if isinstance(tensor, DTensor) else tensor
        if own.is_floating_point() and own.element_size() > 1 and not bool(torch.isfinite(own).all()):
            raise NonFiniteError(f"{what}: {name!r} holds NaN or infinite values; {remedy}")
