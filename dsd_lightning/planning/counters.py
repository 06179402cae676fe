"""Counts the operations and the memory of a step on the tensors themselves, with or without their contents."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry, sdpa_backward_flop_count, sdpa_flop_count, shape_wrapper

FLOAT32 = 4
"""Bytes of a trained value, of its gradient, and of each moment."""


# --- Operations. Kernels that torch's counter lacks; without them attention would be free on the CPU.


def _attention(query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
    return sdpa_flop_count(query, key, value)


def _attention_backward(gradient: Any, query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
    return sdpa_backward_flop_count(gradient, query, key, value)


def _twice_forward(gradient: Any, query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
    return 2 * sdpa_flop_count(query, key, value)


CPU_ATTENTION: dict[Any, Callable[..., int]] = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: _attention_backward,
}
"""As kernels execute it: five products backward, because the scores are computed again."""

MODEL_ATTENTION: dict[Any, Callable[..., int]] = CPU_ATTENTION | {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: _twice_forward
}
"""As MFU counts it: twice the forward pass backward."""


IN_PLACE: dict[Any, Callable[..., int]] = {torch.ops.aten.addmm_: flop_registry[torch.ops.aten.addmm]}
"""Products that add to a tensor in place, which torch's registry lacks."""


class Operations(TorchDispatchMode):
    """Counts floating-point operations: those of torch's registry, products in place, and attention on the CPU.

    (`torch.utils.flop_counter.FlopCounterMode` registers hooks on the graph that keep recomputed activations alive until the
    backward pass is over, and so hides what gradient checkpointing saves.)

    Args:
        attention: `CPU_ATTENTION` or `MODEL_ATTENTION`.

    Attributes:
        total: operations; a multiply-add counts two.
    """

    def __init__(self, attention: Mapping[Any, Callable[..., int]]) -> None:
        super().__init__()
        self._formulas = (
            flop_registry | IN_PLACE | {kernel: shape_wrapper(formula) for kernel, formula in attention.items()}
        )
        self.total = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        outputs = func(*args, **kwargs)
        if formula := self._formulas.get(func.overloadpacket):
            self.total += formula(*args, **kwargs, out_val=outputs)
        return outputs


# --- Memory.


class LiveTensors(TorchDispatchMode):
    """Counts the bytes of all tensors that are alive: those given, and those created by operations while it is active.

    (`torch.distributed._tools.mem_tracker.MemTracker` does the same and more, but stops at frozen parameters.)

    Attributes:
        now, peak: bytes.
        history: (storage, bytes) of each one that came, and (storage, -bytes) of each that went, in their order.
    """

    def __init__(self, tensors: Iterable[Tensor]) -> None:
        super().__init__()
        self.now = self.peak = 0
        self.history: list[tuple[int, int]] = []
        self._alive: dict[int, tuple[int, Any]] = {}
        self._count = 0
        for tensor in tensors:
            self._note(tensor)

    @property
    def alive(self) -> set[int]:
        """The storages that are alive, by their numbers in `history`."""
        return {number for number, _ in self._alive.values()}

    def _note(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        address, size = storage._cdata, storage.nbytes()
        if address in self._alive:
            return
        self._count += 1
        self._alive[address] = (self._count, weakref.ref(storage, partial(self._free, address, self._count, size)))
        self.now += size
        self.peak = max(self.peak, self.now)
        self.history.append((self._count, size))

    def _free(self, address: int, number: int, size: int, _: Any) -> None:
        del self._alive[address]
        self.now -= size
        self.history.append((number, -size))

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        outputs = func(*args, **(kwargs or {}))
        for output in (outputs,) if isinstance(outputs, Tensor) else tree_leaves(outputs):
            if isinstance(output, Tensor):
                self._note(output)
        return outputs


@dataclass(frozen=True)
class Moment:
    """Memory that is alive at one moment of a step, beside weights.

    Attributes:
        constant: bytes that do not depend on the batch.
        per_sample: bytes of each sample.
        gradients: bytes of gradients of weights.
    """

    constant: float
    per_sample: float
    gradients: float


@dataclass(frozen=True)
class Cost:
    """Cost of training steps, by the size of their batch.

    Attributes:
        forward: floating-point operations of a sample's forward pass; a multiply-add counts two.
        training: of forward and backward together, and of what is recomputed.
        moments: that may be the peak of a step, for one batch size or another.
    """

    forward: float
    training: float
    moments: tuple[Moment, ...]

    def activations(self, samples: int, gradients: float = 1.0) -> float:
        """Return the bytes beyond weights and all gradients at the peak of a step of so many samples.

        Args:
            samples: a device's batch.
            gradients: share of them that the device holds.
        """
        whole = max(moment.gradients for moment in self.moments)
        return max(
            moment.constant + samples * moment.per_sample - gradients * (whole - moment.gradients)
            for moment in self.moments
        )


@dataclass(frozen=True)
class Traced:
    """One step that was run without memory.

    Attributes:
        forward, training: floating-point operations of the forward pass, and of the step.
        history: (storage, bytes) of each tensor that came, and (storage, -bytes) of each that went, in their order.
        gradients: the storages that outlive the step.
    """

    forward: int
    training: int
    history: tuple[tuple[int, int], ...]
    gradients: frozenset[int]


def trace(weights: Iterable[Tensor], step: Callable[[], Tensor]) -> Traced:
    """Run a step on tensors without contents.

    Args:
        weights: of the model that `step` uses, without contents as `without_memory` makes them.
        step: returns the loss of a batch.
    """
    live = LiveTensors(weights)
    live.history.clear()
    operations = Operations(MODEL_ATTENTION)
    with live, operations:
        loss = step()
        forward = operations.total
        loss.backward()
    del loss
    return Traced(forward, operations.total, tuple(live.history), frozenset(live.alive))


def cost_of(step: Traced, batch: int) -> Cost:
    """Return the cost of a step at any batch size, from the same step at one.

    Args:
        step: whose every tensor is a constant or grows in proportion to the batch.
        batch: its samples; a prime that divides no other dimension, so that the tensors whose bytes it divides are those that
            grow.
    """
    constant = per_sample = gradients = 0.0
    largest: dict[float, list[Moment]] = {}
    for number, size in step.history:
        if number in step.gradients:
            gradients += size
        elif size % batch:
            constant += size
        else:
            per_sample += size // batch
        moment = Moment(constant, per_sample, gradients)
        others = largest.setdefault(gradients, [])
        if not any(_exceeds(other, moment) for other in others):
            largest[gradients] = [*(other for other in others if not _exceeds(moment, other)), moment]
    kept: list[Moment] = []
    for held in sorted(largest, reverse=True):  # more gradients first: they count against a moment
        kept += [moment for moment in largest[held] if not any(_exceeds(other, moment) for other in kept)]
    return Cost(step.forward / batch, step.training / batch, tuple(kept))


def _exceeds(one: Moment, other: Moment) -> bool:
    """Return whether `one` takes at least as much memory at every batch size, gradients aside."""
    return one.constant >= other.constant and one.per_sample >= other.per_sample


def without_memory() -> FakeTensorMode:
    """Return the mode in which tensors have shapes and take no memory; attention is that of a kernel that keeps no scores."""
    return FakeTensorMode(allow_non_fake_inputs=True)
