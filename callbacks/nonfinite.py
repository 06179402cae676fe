"""Skips steps with an infinite or NaN loss or gradient, on all devices; ends the run after several in a row."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import lightning as L
import torch
from torch import Tensor

from callbacks.stopping import Diverged
from dsd_lightning.compute.dtensors import full_tensor
from dsd_lightning.compute.processes import largest
from dsd_lightning.files.atomic import write_json

log = logging.getLogger(__name__)


class NonFiniteGuard(L.Callback):
    """Leaves an optimizer step out, on all devices, if the loss or a gradient of any of them is infinite or NaN.

    Weights and moments stay as they are; the step counts, as do its batches. Logs `optimizer/skipped_steps`, the number of
    such steps in the whole run. Each one's samples are written to `folder`, by device, with the losses.

    After `in_a_row` of them the run ends with `Diverged`, and its folder is restored to before the first of them: the last
    checkpoint is an earlier one (`callbacks.adapter_checkpoint` does this), and `ckpt=last` goes on from there.

    Args:
        folder: for `step_<8 digits>_device_<n>.json`.
        in_a_row: consecutive steps after which the run ends.
    """

    def __init__(self, folder: str | Path, in_a_row: int = 5) -> None:
        if in_a_row < 1:
            raise ValueError(f"callbacks.nonfinite.in_a_row={in_a_row} must be at least 1")
        self.folder, self.in_a_row = Path(folder), in_a_row
        self.skipped = self.row = 0
        self._bad: Tensor | None = None
        self._losses: list[Tensor] = []
        self._samples: list[tuple[str, int]] = []
        self._skipping = False

    def on_before_backward(self, trainer: L.Trainer, pl_module: L.LightningModule, loss: Tensor) -> None:
        """Note, without waiting for the device, whether this batch's loss is finite."""
        bad = ~torch.isfinite(loss.detach())
        self._bad = bad if self._bad is None else self._bad | bad
        self._losses.append(loss.detach())

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Note which samples the step is made of."""
        self._samples += list(zip(batch.keys, batch.epochs, strict=True))

    def on_before_optimizer_step(
        self, trainer: L.Trainer, pl_module: L.LightningModule, optimizer: torch.optim.Optimizer
    ) -> None:
        """Drop the gradients of all devices if any device's loss, or the norm of all gradients, is not finite."""
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        norm = full_tensor(torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None]))
        bad = ~torch.isfinite(norm)
        if self._bad is not None:
            bad = bad | self._bad
        # The one wait for the device in an optimizer step: a step that is left out must not reach the optimizer.
        self._skipping = bool(largest(bad.to(trainer.strategy.root_device, torch.float32)))
        if self._skipping:
            self._report(trainer, float(norm))
            for parameter in parameters:
                parameter.grad = None
            self.skipped, self.row = self.skipped + 1, self.row + 1
        else:
            self.row = 0
        pl_module.log("optimizer/skipped_steps", torch.tensor(float(self.skipped)))
        self._bad, self._losses, self._samples = None, [], []

    def _report(self, trainer: L.Trainer, norm: float) -> None:
        step, rank = trainer.global_step, trainer.global_rank
        path = self.folder / f"step_{step:08d}_device_{rank}.json"
        self.folder.mkdir(parents=True, exist_ok=True)
        samples = [{"key": key, "epoch": epoch} for key, epoch in self._samples]
        facts = {"step": step, "device": rank, "gradient_norm": repr(norm), "samples": samples}
        write_json(path, facts | {"losses": [repr(float(loss)) for loss in self._losses]})
        log.warning("step %d is left out: its loss or gradient is not finite (samples: %s)", step, path)

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """End the run after too many such steps in a row, on all devices at once.

        Raises:
            Diverged: naming where the samples are listed, and the step that the run goes on from.
        """
        if self._skipping and self.row >= self.in_a_row:
            self._skipping = False
            raise Diverged(
                f"{self.row} steps in a row had a loss or gradient that is not finite; their samples are listed in "
                f"{self.folder}. Look at them, or lower optimizer.lr; ckpt=last goes on from before the first of these steps",
                last_good=trainer.global_step - self.row,
            )

    def state_dict(self) -> dict[str, int]:
        """Return the counts."""
        return {"skipped": self.skipped, "row": self.row}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on counting."""
        self.skipped, self.row = int(state_dict["skipped"]), int(state_dict["row"])
