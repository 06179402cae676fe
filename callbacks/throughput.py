"""Logs how fast training is, how long it waits for data, gradient norm and learning rate."""

from __future__ import annotations

import logging
import time
from typing import Any

import lightning as L
import torch

from callbacks.summary import summarise
from dsd_lightning.compute.dtensors import full_tensor
from dsd_lightning.planning.gpus import GPUS, recognise

log = logging.getLogger(__name__)


AUTO = "auto"
"""Value of `peak_tflops`: that of the GPU that is there."""


def _peak_of(device: torch.device) -> float | None:
    """Return the dense bfloat16 TFLOP/s of a device by CUDA's name of it; None for others, and with a line in the log."""
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device)
    if (gpu := recognise(name)) is None:
        log.info(
            "the peak throughput of %s is not known: for throughput/mfu give callbacks.throughput.peak_tflops", name
        )
        return None
    return GPUS[gpu].peak_tflops


class Throughput(L.Callback):
    """Logs metrics at the trainer's logging interval.

    - `throughput/pairs_per_second`: training pairs of all devices per second since the last time. Validation, sampling
      and saving are not counted as time.
    - `throughput/data_share`: share of that time spent between the batches, which is waiting for data; in [0, 1].
    - `throughput/mfu`: share of `peak_tflops` of all devices that the operations of those pairs amount to, recomputed ones
      included; only where `peak_tflops` is known, and `callbacks.cost.StepCost` has counted a pair's operations.
    - `throughput/memory_gib`: peak of the memory allocated on this device; CUDA only.
    - `optimizer/grad_norm`: L2 norm of all gradients of the step, before clipping.
    - `optimizer/lr`: learning rate of the step, of the first parameter group.

    Puts `seconds_per_pair` into the summary: the same time a pair, over the whole run and its resumes, but for each
    process's first optimizer step, in which kernels are chosen and blocks compiled.

    Args:
        peak_tflops: of one device, in the precision of training, TFLOP/s; "auto": dense bfloat16 of the GPU that is there, if
            `planning.gpus.GPUS` has it; None: no `throughput/mfu`.
    """

    def __init__(self, peak_tflops: float | int | str | None = AUTO) -> None:
        is_valid = peak_tflops in (None, AUTO) or (isinstance(peak_tflops, float | int) and peak_tflops > 0)
        if not is_valid:
            raise ValueError(f"callbacks.throughput.peak_tflops={peak_tflops} must be > 0, {AUTO} or null")
        self.setting = peak_tflops
        self.peak_tflops: float | None = None
        self._reset()
        self._counted = {"pairs": 0, "seconds": 0.0}
        self._first = True
        self._ended: float | None = None
        self._started = self._wait = 0.0
        self._step = 0

    def _reset(self) -> None:
        self._pairs, self._busy, self._waited = 0, 0.0, 0.0

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Start counting."""
        self.peak_tflops = _peak_of(pl_module.device) if isinstance(self.setting, str) else self.setting
        self._reset()
        self._ended, self._step = None, trainer.global_step
        self._first = True

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Note how long the batch was waited for."""
        self._started = time.monotonic()
        self._wait = self._started - self._ended if self._ended is not None else 0.0
        self._waited += self._wait

    def on_before_optimizer_step(
        self, trainer: L.Trainer, pl_module: L.LightningModule, optimizer: torch.optim.Optimizer
    ) -> None:
        """Log the gradient norm and the learning rate of the steps that are logged."""
        if (trainer.global_step + 1) % trainer.log_every_n_steps:  # type: ignore[attr-defined]
            return
        gradients = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        # The reduction stays on the device; the logger fetches the number.
        pl_module.log("optimizer/grad_norm", full_tensor(torch.nn.utils.get_total_norm(gradients)))
        pl_module.log("optimizer/lr", torch.tensor(float(optimizer.param_groups[0]["lr"])))

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Count the batch, and log at the trainer's interval."""
        now = time.monotonic()
        self._busy += now - self._started
        pairs = len(batch) * trainer.world_size
        self._pairs += pairs
        if not self._first:
            self._counted["pairs"] += pairs
            self._counted["seconds"] += now - self._started + self._wait
        self._first = self._first and trainer.global_step == self._step
        due = trainer.global_step % trainer.log_every_n_steps == 0  # type: ignore[attr-defined]
        if due and trainer.global_step != self._step:
            seconds = self._busy + self._waited
            speed = torch.tensor(self._pairs / max(seconds, 1e-9))  # on the CPU: Lightning reads it at every batch
            pl_module.log("throughput/pairs_per_second", speed, prog_bar=True)
            flops = (getattr(pl_module, "summary", None) or {}).get("flops_per_pair")
            if self.peak_tflops is not None and flops is not None:
                reached = self._pairs / max(seconds, 1e-9) * flops / trainer.world_size
                pl_module.log("throughput/mfu", reached / (self.peak_tflops * 1e12))
            pl_module.log("throughput/data_share", self._waited / max(seconds, 1e-9))
            if pl_module.device.type == "cuda":
                pl_module.log("throughput/memory_gib", torch.cuda.max_memory_allocated(pl_module.device) / 2**30)
            self._reset()
        self._step = trainer.global_step
        self._ended = now

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Add the time a pair to the summary."""
        if self._counted["pairs"]:
            summarise(pl_module, {"seconds_per_pair": self._counted["seconds"] / self._counted["pairs"]})

    def leave_out(self) -> None:
        """Do not count the time until the next batch."""
        self._ended = None

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Exclude the time until the next batch."""
        self.leave_out()

    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        """Save the time so far, and exclude that until the next batch."""
        checkpoint["throughput"] = dict(self._counted)
        self.leave_out()

    def on_load_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        """Continue counting."""
        self._counted |= checkpoint.get("throughput", {})
