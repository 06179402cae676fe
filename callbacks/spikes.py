"""Counts batches whose loss is far above the running mean, and lists their samples."""

from __future__ import annotations

import json
import logging
import math
from pathlib import Path
from typing import Any

import lightning as L
import torch
from torch import Tensor

log = logging.getLogger(__name__)


class LossSpikes(L.Callback):
    """Counts batches whose loss is far above its running mean, as `train/loss_spikes`, and lists their samples.

    A loss is a spike when it exceeds the running mean by `deviations` running standard deviations. It then moves both only as
    far as a loss at that limit would, so that one jump hides no other, and a lasting change is soon no spike. Every device
    judges its own batches and writes its own list; the metric is the first device's count.

    Losses stay on the device until every `every_n_batches` batches, when all of them are checked together, so that no
    step waits for them.

    Args:
        folder: for `device_<n>.jsonl`: step, loss, mean, deviation and samples of each spike.
        deviations: how far above the mean, in standard deviations.
        decay: of the running mean and variance, a batch.
        warm_up: batches before any is called a spike.
        every_n_batches: how often the losses are checked.
    """

    def __init__(
        self,
        folder: str | Path,
        deviations: float | int = 6.0,
        decay: float = 0.98,
        warm_up: int = 100,
        every_n_batches: int = 50,
    ) -> None:
        if deviations <= 0 or not 0 < decay < 1 or warm_up < 2 or every_n_batches < 1:
            raise ValueError(
                f"callbacks.spikes: deviations={deviations} must be > 0, decay={decay} in (0, 1), warm_up={warm_up} at least "
                f"2, every_n_batches={every_n_batches} at least 1"
            )
        self.folder, self.deviations, self.decay = Path(folder), deviations, decay
        self.warm_up, self.every_n_batches = warm_up, every_n_batches
        self.count = self.batches = 0
        self.mean = self.variance = 0.0
        self._rank, self._accumulated = 0, 1
        self._waiting: list[tuple[int, Tensor, list[tuple[str, int]]]] = []

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Note which device this is, and how many batches make a step."""
        self._rank, self._accumulated = trainer.global_rank, trainer.accumulate_grad_batches

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Keep the batch's loss, and check all that are kept when there are enough."""
        samples = list(zip(batch.keys, batch.epochs, strict=True))
        self._waiting.append((trainer.global_step, outputs["loss"].detach(), samples))
        if len(self._waiting) >= self.every_n_batches:
            self._check()
            pl_module.log("train/loss_spikes", torch.tensor(float(self.count)), rank_zero_only=True)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Check the rest."""
        self._check()

    def _check(self) -> None:
        losses = torch.stack([loss for _, loss, _ in self._waiting]).tolist() if self._waiting else []
        for (step, _, samples), loss in zip(self._waiting, losses, strict=True):
            # Lightning hands out the loss divided by the batches that are accumulated.
            value = loss * self._accumulated
            if not math.isfinite(value):
                continue  # callbacks.nonfinite reports it
            deviation = math.sqrt(self.variance)
            limit = self.mean + self.deviations * deviation
            if self.batches >= self.warm_up and value > limit:
                self.count += 1
                self._report(step, value, deviation, samples)
                value = limit
            self.batches += 1
            # As though all batches so far had the same weight, until the decay takes over.
            share = max(1 - self.decay, 1 / self.batches)
            difference = value - self.mean
            self.mean += share * difference
            self.variance = (1 - share) * (self.variance + share * difference**2)
        self._waiting = []

    def _report(self, step: int, loss: float, deviation: float, samples: list[tuple[str, int]]) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / f"device_{self._rank}.jsonl"
        facts = {"step": step, "loss": loss, "mean": self.mean, "deviation": deviation}
        with path.open("a") as file:
            file.write(json.dumps(facts | {"samples": [{"key": key, "epoch": epoch} for key, epoch in samples]}) + "\n")
        log.warning(
            "the loss of step %d is %.4g, after a running mean of %.4g +- %.2g (samples: %s)",
            *(step, loss, self.mean, deviation, path),
        )

    def state_dict(self) -> dict[str, float]:
        """Return the counts and the running mean and variance, after checking the losses that wait."""
        self._check()
        return {"count": self.count, "batches": self.batches, "mean": self.mean, "variance": self.variance}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on counting."""
        self.count, self.batches = int(state_dict["count"]), int(state_dict["batches"])
        self.mean, self.variance = float(state_dict["mean"]), float(state_dict["variance"])
