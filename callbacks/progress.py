"""Shows the progress of a whole run in the terminal."""

from __future__ import annotations

from typing import Any

import lightning as L
from lightning.pytorch.callbacks import TQDMProgressBar
from lightning.pytorch.callbacks.progress.tqdm_progress import Tqdm


class ProgressBar(TQDMProgressBar):
    """Shows the loss of every frame, pairs per second and the time left for the whole run.

    Args:
        refresh_rate: batches between two updates.
    """

    BAR_FORMAT = "{desc} {percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt} [{elapsed}, {remaining} left{postfix}]"

    def on_train_start(self, trainer: L.Trainer, *_: Any) -> None:
        """Open the bar where a resumed run continues: Lightning starts an epoch's bar only at its first batch."""
        super().on_train_start()
        bar: Tqdm = self.train_progress_bar
        bar.set_description("training")
        bar.total = self._batches_of_the_run(trainer)
        # The time left is judged by the batches of this process alone.
        bar.initial = bar.n = trainer.fit_loop.epoch_loop.batch_progress.current.ready
        bar.refresh()

    def _batches_of_the_run(self, trainer: L.Trainer) -> int | None:
        # Lightning's own metric is what remains after a resume, while its count goes on from where the run stopped.
        batches = float(trainer.num_training_batches)
        if trainer.max_steps > 0:
            batches = min(batches, trainer.max_steps * trainer.accumulate_grad_batches)
        return None if batches == float("inf") else int(batches)

    def on_train_epoch_start(self, trainer: L.Trainer, *_: Any) -> None:
        """Keep the bar of the run; an epoch of the trainer has no meaning of its own here."""

    def get_metrics(self, trainer: L.Trainer, pl_module: L.LightningModule) -> dict[str, Any]:
        """Return the metrics shown behind the bar, under short names and without the logger's version number."""
        shown = {}
        for name, value in super().get_metrics(trainer, pl_module).items():
            if name == "v_num":
                continue
            if name == "throughput/pairs_per_second":
                name = "pairs/s"
            elif name.startswith("train/"):
                name = name.removeprefix("train/")
            shown[name] = value
        return shown
