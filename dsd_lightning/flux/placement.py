"""Keeps frozen parts in main memory, and lends them to the device while they compute."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


def execution_device(module: nn.Module) -> torch.device:
    """Return the device on which `module` wants its inputs: that of its offload hooks, or else of its weights."""
    for part in module.modules():
        device = getattr(getattr(part, "_hf_hook", None), "execution_device", None)
        if device is not None:
            return torch.device(device)
    return next(module.parameters()).device


class Parkable(nn.Module):
    """Frozen weights that may wait in main memory, and are copied to a device while something is computed with them.

    The copy is freed afterwards; nothing is moved back. Computations with the weights are done within `at_work()`.
    """

    _where: Callable[[], torch.device] | None = None
    _visiting: bool = False

    def park(self, where: Callable[[], torch.device]) -> None:
        """From now on, leave the weights where they are, and compute on the device that `where` returns."""
        self._where = where

    @contextmanager
    def at_work(self) -> Iterator[None]:
        """Have parked weights on the computing device within the block. Blocks may be nested; the outermost moves."""
        if self._where is None or self._visiting:
            yield
            return
        device = self._where()
        waiting = [(tensor, tensor.data) for tensor in (*self.parameters(), *self.buffers())]
        self._visiting = True
        try:
            for tensor, values in waiting:
                tensor.data = bring(values, device)
            yield
        finally:
            for tensor, values in waiting:
                tensor.data = values
            self._visiting = False


def park(owner: nn.Module, parts: Iterable[str], where: Callable[[], torch.device]) -> None:
    """Park the named parts of `owner`, each a `Parkable`.

    They are no submodules of it any more: Lightning moves, DDP sends and FSDP shards what is registered.
    """
    for name in parts:
        part: Parkable = getattr(owner, name)
        delattr(owner, name)
        owner.__dict__[name] = part
        part.park(where)


def bring(values: Tensor, device: torch.device) -> Tensor:
    """Return `values` on `device`, as a tensor that training may use, whoever calls it."""
    with torch.inference_mode(False), torch.no_grad():
        return values.to(device)
