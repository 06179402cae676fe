"""Writes the last metrics of a run to one small file."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import lightning as L

from dsd_lightning.files.atomic import write_json


def summarise(pl_module: L.LightningModule, metrics: Mapping[str, float]) -> None:
    """Add metrics to the module's `summary`, a dict that is created if there is none."""
    if not hasattr(pl_module, "summary"):
        pl_module.summary = {}  # type: ignore[assignment]
    cast(dict[str, Any], pl_module.summary).update(metrics)


class Summary(L.Callback):
    """Writes `summary.json` when training ends, also when it is stopped early or fails.

    It holds the last value of every logged metric by name, the metrics that other callbacks put into the module's
    `summary` (a dict of floats), and

    - `finished`: whether training came to its end (false if it was stopped or failed);
    - `steps`: optimizer steps, over all resumes;
    - `pairs_seen`: training pairs of all devices, over all resumes;
    - `seconds`: wall-clock time of training, validation included, over all resumes;
    - `parameters_trained`: number of trained values.

    Values that are not finite are written as null. Place it after callbacks that add metrics in `on_train_end`.

    Args:
        path: of the file; its folder is created.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.values: dict[str, float] = {}
        self.pairs_seen = 0
        self._pairs_since_step = 0
        self._seconds_before = 0.0
        self._started: float | None = None
        self._step = 0

    @property
    def seconds(self) -> float:
        """Wall-clock time of training so far, over all resumes."""
        return self._seconds_before + (time.monotonic() - self._started if self._started is not None else 0.0)

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Start the clock."""
        self._started, self._step = time.monotonic(), trainer.global_step

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Count pairs, once their optimizer step is done: what is repeated after a resume counts once."""
        self._pairs_since_step += len(batch) * trainer.world_size
        if trainer.global_step != self._step:
            self._step = trainer.global_step
            self.pairs_seen, self._pairs_since_step = self.pairs_seen + self._pairs_since_step, 0

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Write the metrics."""
        self._write(trainer, pl_module, finished=True)

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        """Write the metrics so far, if training had begun."""
        if self._started is not None:
            self._write(trainer, pl_module, finished=False)

    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        """Note the metrics so far, so that a resumed run has those that it does not measure again."""
        checkpoint["summary"] = {
            "values": self._collect(trainer, pl_module),
            "pairs_seen": self.pairs_seen,
            "seconds": self.seconds,
        }

    def on_load_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        """Go on from the metrics of the checkpoint."""
        state = checkpoint.get("summary", {})
        self.values = dict(state.get("values", {}))
        self.pairs_seen = int(state.get("pairs_seen", 0))
        self._seconds_before = float(state.get("seconds", 0.0))

    def _collect(self, trainer: L.Trainer, pl_module: L.LightningModule) -> dict[str, float]:
        logged = {name: float(value) for name, value in trainer.callback_metrics.items()}
        added = {name: float(value) for name, value in (getattr(pl_module, "summary", None) or {}).items()}
        self.values |= logged | added
        return dict(self.values)

    def _write(self, trainer: L.Trainer, pl_module: L.LightningModule, finished: bool) -> None:
        values = self._collect(trainer, pl_module)
        if not trainer.is_global_zero:
            return
        metrics: dict[str, float | int | None] = {
            name: value if math.isfinite(value) else None for name, value in sorted(values.items())
        }
        metrics |= {
            "finished": finished,
            "steps": trainer.global_step,
            "pairs_seen": self.pairs_seen,
            "seconds": round(self.seconds, 3),
            "parameters_trained": sum(p.numel() for _, p in pl_module.architecture.trainable()),  # type: ignore[operator, union-attr]
        }
        write_json(self.path, metrics)
