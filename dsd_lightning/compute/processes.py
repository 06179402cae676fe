"""Lets the processes of a run act as one: fail with one error, and reduce values without waiting for the device.

Without a process group, or in a group of one process, the functions run their job, or return their value, and nothing else.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch.distributed as dist
from torch import Tensor


def is_several() -> bool:
    """Return whether this process is one of several that are connected."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def is_first() -> bool:
    """Return whether this process is the first one, or alone."""
    return not is_several() or dist.get_rank() == 0


def of_first(value: Any) -> Any:
    """Return the first process's value. All processes must call it."""
    if not is_several():
        return value
    sent = [value]
    dist.broadcast_object_list(sent, src=0)
    return sent[0]


def on_first(job: Callable[[], object]) -> None:
    """Run `job` in the first process while the others wait; an error of it is raised by all, with one message.

    All processes must call it. An error's class must take the message as its only argument.
    """
    error: Exception | None = None
    if is_first():
        error = _error_of(job)
    _raise(error, of_first(None if error is None else (type(error), str(error))))


def together(job: Callable[[], object]) -> None:
    """Run `job` in all processes; if it fails in any, all raise the error of the first one in which it did.

    All processes must call it. An error's class must take the message as its only argument.
    """
    error = _error_of(job)
    described = [None if error is None else (type(error), str(error))]
    if is_several():
        gathered: list[Any] = [None] * dist.get_world_size()
        dist.all_gather_object(gathered, described[0])
        described = gathered
    _raise(error, next((each for each in described if each is not None), None))


def largest(value: Tensor, group: dist.ProcessGroup | None = None) -> Tensor:
    """Return the largest of all processes' values; all must call it.

    Lightning's own `reduce` has a barrier before it, for which the device would be waited for.

    Args:
        value: on the device that the group's backend sends from; it is overwritten.
        group: None for that of all processes.
    """
    if is_several():
        dist.all_reduce(value, dist.ReduceOp.MAX, group)
    return value


def mean(value: Tensor) -> Tensor:
    """Return the mean of all processes' values; all must call it. `value` is overwritten."""
    if is_several():
        dist.all_reduce(value)
        value /= dist.get_world_size()
    return value


def host_group() -> dist.ProcessGroup | None:
    """Return a group of all processes that sends values of the CPU, so that none waits for its GPU; all must call it."""
    return dist.new_group(backend="gloo") if is_several() and dist.get_backend() != "gloo" else None


def _error_of(job: Callable[[], object]) -> Exception | None:
    try:
        job()
    except Exception as error:  # noqa: BLE001 - the caller raises it, by all processes
        return error
    return None


def _raise(own: Exception | None, described: tuple[type[Exception], str] | None) -> None:
    """Raise this process's error if it is the one described, or another of its class and message."""
    if described is None:
        return
    kind, message = described
    raise own if own is not None and (type(own), str(own)) == described else kind(message)
