"""Measures what one training step costs, in operations and in memory."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, cast

import lightning as L
import torch
from lightning.pytorch.utilities.seed import isolate_rng

from callbacks.isolated_sampling import leave_out
from callbacks.summary import summarise
from dsd_lightning.compute.machine import uncompiled
from dsd_lightning.module import DiffusionSelfDistillation
from dsd_lightning.pairs import PairBatch
from dsd_lightning.planning.counters import CPU_ATTENTION, LiveTensors, Operations

log = logging.getLogger(__name__)


class StepCost(L.Callback):
    """Puts `flops_per_pair` and `peak_memory_gib` into the summary, measured on one real training step.

    After a process's first optimizer step, when the optimizer's state is there, the last batch goes forward and
    backward once more under torch's counters. Gradients are then dropped and random states
    restored, so that the training is unchanged.

    - `flops_per_pair`: floating-point operations of forward and backward, a multiplication and an addition counting as
      two: matrix products, convolutions and attention, as executed (so recomputation counts; encoding counts where
      batches do not bring their encodings). Not the optimizer's. Counted by `torch.utils.flop_counter`;
      attention kernels from elsewhere count as nothing.
    - `peak_memory_gib`: most memory at any moment of the step, GiB, of one device. On CUDA all that is allocated. On the
      CPU, where a process's size says little, the tensors alive: all weights (frozen ones too, but not parked encoders'),
      gradients, optimizer state and activations; not what a kernel needs while it runs.
    """

    def __init__(self) -> None:
        self._step = 0
        self._measured = False

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Wait for the first optimizer step."""
        self._step, self._measured = trainer.global_step, False

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: PairBatch, batch_idx: int
    ) -> None:
        """Measure, after the first optimizer step."""
        if self._measured or trainer.global_step == self._step:
            return
        self._measured = True
        metrics = measure(trainer, cast(DiffusionSelfDistillation, pl_module), batch)
        summarise(pl_module, metrics)
        leave_out(trainer)
        log.info("a training step: %s", ", ".join(f"{name} {value:.4g}" for name, value in metrics.items()))


def _state(trainer: L.Trainer, module: L.LightningModule) -> Iterable[torch.Tensor]:
    yield from module.parameters()
    yield from module.buffers()
    for optimizer in trainer.optimizers:
        for state in optimizer.state.values():
            yield from (value for value in state.values() if isinstance(value, torch.Tensor))


def measure(trainer: L.Trainer, module: DiffusionSelfDistillation, batch: PairBatch) -> dict[str, float]:
    """Return `flops_per_pair` and `peak_memory_gib` of a training step on `batch`, which is on the module's device."""
    on_cuda = module.device.type == "cuda"
    operations = Operations(CPU_ATTENTION)
    module.zero_grad()
    memory = LiveTensors(() if on_cuda else _state(trainer, module))
    tracking: AbstractContextManager[Any] = nullcontext() if on_cuda else memory
    if on_cuda:
        torch.cuda.reset_peak_memory_stats(module.device)
    try:
        # Compiled blocks would hide from the counters what they compute.
        with isolate_rng(), uncompiled(), tracking, operations:
            with trainer.precision_plugin.train_step_context():
                loss = module.losses(batch).total
            loss.backward()
    finally:
        module.zero_grad()
    peak = torch.cuda.max_memory_allocated(module.device) if on_cuda else memory.peak
    return {"flops_per_pair": operations.total / len(batch), "peak_memory_gib": peak / 2**30}
