"""Shows the progress of a whole run: a bar in a terminal, a line every few steps in a log file."""

from __future__ import annotations

import logging
import resource
import sys
import time
import warnings
from contextlib import ExitStack
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import TQDMProgressBar
from lightning.pytorch.callbacks.progress.tqdm_progress import Tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

log = logging.getLogger(__name__)

SHORT = {"throughput/pairs_per_second": "pairs/s"}
"""Names shown instead of the logged ones, which otherwise lose their `train/`."""


LOSSES, SPIKES = "train/loss", "train/loss_spikes"
"""Beginning of the names of the losses, which are shown; and a count that begins so, too."""


class ProgressBar(TQDMProgressBar):
    """Shows the losses, pairs per second and the time left for the whole run.

    In a terminal it is a bar, above which log lines and warnings are printed. Where standard output is no terminal, a
    bar would be written again at every step, and it is a line every few optimizer steps instead.

    Args:
        refresh_rate: batches between two updates of the bar.
        every_n_steps: optimizer steps between two lines; the first and the last step have one too.
    """

    BAR_FORMAT = "{desc} {percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt} [{elapsed}, {remaining} left{postfix}]"

    def __init__(self, refresh_rate: int = 1, every_n_steps: int = 50) -> None:
        super().__init__(refresh_rate)
        if every_n_steps < 1:
            raise ValueError(f"callbacks.progress.every_n_steps={every_n_steps} must be >= 1")
        self.every_n_steps = every_n_steps
        self._lines = False
        self._redirected = ExitStack()
        self._started, self._first, self._last = 0.0, 0, -1
        self._shown: dict[str, Any] = {}

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Choose between bar and lines, for the first process; the others show nothing."""
        super().setup(trainer, pl_module, stage)
        self._lines = trainer.is_global_zero and not sys.stdout.isatty()
        if self._lines:
            self.disable()

    def on_train_start(self, trainer: L.Trainer, *_: Any) -> None:
        """Open the bar where a resumed run continues: Lightning starts an epoch's bar only at its first batch."""
        super().on_train_start()
        self._started, self._first, self._last = time.monotonic(), trainer.global_step, -1
        if self.is_disabled:
            return
        self._redirected.callback(setattr, warnings, "showwarning", warnings.showwarning)
        warnings.showwarning = _log_warning
        self._redirected.enter_context(logging_redirect_tqdm(tqdm_class=Tqdm))
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

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *rest: Any) -> None:
        """Move the bar, or log a line."""
        super().on_train_batch_end(trainer, pl_module, *rest)
        step = trainer.global_step
        if not self._lines or step in (self._first, self._last):
            return
        if step == self._first + 1:
            # The first step, in which blocks are compiled, says nothing about the others.
            self._started = time.monotonic()
        if step % self.every_n_steps == 0 or step in (self._first + 1, trainer.max_steps):
            self._last = step
            log.info(self.line(trainer, pl_module))

    def line(self, trainer: L.Trainer, pl_module: L.LightningModule) -> str:
        """Return the line of the last optimizer step: losses, pairs per second, time left, memory."""
        batches, step = self._batches_of_the_run(trainer), trainer.global_step
        steps = None if batches is None else batches // trainer.accumulate_grad_batches
        parts = [f"step {step}/{'?' if steps is None else steps}"]
        for name, value in self.get_metrics(trainer, pl_module).items():
            parts.append(f"{name} {value:.4g}" if isinstance(value, float) else f"{name} {value}")
        if steps is not None and step > self._first + 1:
            seconds = (time.monotonic() - self._started) / (step - self._first - 1) * (steps - step)
            parts.append(f"{Tqdm.format_interval(seconds)} left")
        return "  ".join([*parts, f"{_peak_memory(pl_module.device):.1f} GiB"])

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Close the validation's bar, or log its losses."""
        super().on_validation_end(trainer, pl_module)
        if self._lines and not trainer.sanity_checking:
            losses = {
                name: float(value)
                for name, value in trainer.callback_metrics.items()
                if name.startswith("val/") and "_bin" not in name
            }
            log.info("  ".join([f"validation after step {trainer.global_step}", *map(_named, losses.items())]))

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Give log lines and warnings back to their own handlers, also after a failure."""
        super().teardown(trainer, pl_module, stage)
        self._redirected.close()

    def get_metrics(self, trainer: L.Trainer, pl_module: L.LightningModule) -> dict[str, Any]:
        """Return the metrics that are shown, under short names and without the logger's version number.

        They change where metrics are logged: to fetch them at every batch would mean to wait for the device each time.
        """
        due = trainer.global_step % max(1, trainer.log_every_n_steps) == 0  # type: ignore[attr-defined]
        if due or not self._shown or not trainer.training or self._lines:
            logged = trainer.callback_metrics.items()
            losses = {name: float(v) for name, v in logged if name.startswith(LOSSES) and name != SPIKES}
            metrics = {**losses, **super().get_metrics(trainer, pl_module)}
            self._shown = {
                SHORT.get(name, name.removeprefix("train/")): v for name, v in metrics.items() if name != "v_num"
            }
        return self._shown


def _log_warning(message: Warning | str, category: type[Warning], *_: Any, **__: Any) -> None:
    log.warning("%s: %s", category.__name__, message)


def _named(metric: tuple[str, float]) -> str:
    return f"{metric[0].removeprefix('val/')} {metric[1]:.4g}"


def _peak_memory(device: torch.device) -> float:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
