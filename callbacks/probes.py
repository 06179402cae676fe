"""How well does the model draw held-out samples? Exact figures on the miniature; PSNR of the redrawn frame on any data."""

from __future__ import annotations

import logging
from typing import Any, cast

import lightning as L
from torchmetrics import Metric

from callbacks.drawing import EveryNSteps, drawing
from dsd_lightning.miniature.metrics import CopyPaste, IdentityAccuracy, PromptAccuracy, ReferencePSNR, tells_scene
from dsd_lightning.miniature.renderer import RESOLUTION
from dsd_lightning.module import DiffusionSelfDistillation
from dsd_lightning.pairs import REFERENCE, TARGET, PairBatch

log = logging.getLogger(__name__)

PREFIX = "probe/"
"""Of the metric names in the loggers; `docs/metrics.md` says what they mean."""

BEFORE = "_before"
"""Suffix, in the summary, of the figures of the untrained state."""


class MiniatureProbe(L.Callback):
    """Draws the datamodule's probe pairs and scores them: before training, every N steps if asked, and at the end.

    The pairs and their noise are the same every time. Figures go to the loggers as `probe/<name>` and to the module's
    `summary` (a dict) under their bare names, those of the untrained state with the suffix `_before`. After the first
    step the averaged weights are used if a callback keeps them. What the data cannot tell is left out: without the
    miniature's facts only `reference_psnr` remains, and that needs an architecture that redraws the reference. In the list
    of callbacks it stands behind `callbacks.ema`, so that the averages have seen the step, and before `callbacks.summary`.

    Several devices share the samples among them.

    Args:
        samples: held-out pairs drawn, from `trainer.datamodule.probe_batches`.
        batch_size: samples drawn at once.
        every_n_steps: optimizer steps between probes; None for none before the end.
        before: whether the untrained state is probed too.
    """

    def __init__(
        self, samples: int = 256, batch_size: int = 64, every_n_steps: int | None = None, before: bool = True
    ) -> None:
        super().__init__()
        if samples < 1 or batch_size < 1:
            raise ValueError(f"samples={samples} and batch_size={batch_size} must be at least 1")
        self.samples, self.batch_size, self.before = samples, batch_size, before
        self.clock = EveryNSteps(every_n_steps, "every_n_steps")

    # --- When.

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Probe the untrained state, unless the run is resumed; then the checkpoint's summary has its figures."""
        # Not on_fit_start: there a resumed run has not got its step yet.
        self.clock.start(trainer)
        if self.before and trainer.global_step == 0:
            figures = self.probe(trainer, pl_module, averaged=False)
            self._summarise(pl_module, {name + BEFORE: value for name, value in figures.items()})

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
        """Probe every N optimizer steps."""
        if self.clock.due(trainer):
            self.probe(trainer, pl_module, averaged=True)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Probe the trained state, for the summary too."""
        self._summarise(pl_module, self.probe(trainer, pl_module, averaged=True))

    # --- What.

    def probe(self, trainer: L.Trainer, pl_module: L.LightningModule, averaged: bool) -> dict[str, float]:
        """Draw and score the probe pairs, log the figures and return them by name; empty where nothing can be told."""
        module = cast(DiffusionSelfDistillation, pl_module)
        with drawing(trainer, module, averaged):
            # Reading the batches may draw from the global generators, too.
            batches = self._batches(trainer)
            metrics = self._metrics(module, batches)
            if not metrics:
                return {}
            for index in range(trainer.global_rank, len(batches) + trainer.global_rank, trainer.world_size):
                # All devices draw equally often, as sharded weights demand; a surplus drawing is not counted.
                batch = batches[min(index, len(batches) - 1)].to(module.device)
                drawn = module.draw(batch)
                if index < len(batches):
                    _update(metrics, drawn, batch)
            figures = {name: float(metric.compute()) for name, metric in metrics.items()}
        for logger in trainer.loggers:
            logger.log_metrics({PREFIX + name: value for name, value in figures.items()}, step=trainer.global_step)
        log.info(
            "step %d: %s", trainer.global_step, ", ".join(f"{name} {value:.3f}" for name, value in figures.items())
        )
        for name in ("identity_accuracy", "prompt_accuracy"):
            if name in metrics:
                errors = cast(IdentityAccuracy, metrics[name]).errors_by_attribute()
                log.info("%s, attributes mistaken: %s", name, {key: count for key, count in errors.items() if count})
        return figures

    def _batches(self, trainer: L.Trainer) -> list[PairBatch]:
        offered = getattr(getattr(trainer, "datamodule", None), "probe_batches", None)
        if offered is None:
            log.info("the data has no probe_batches; nothing is probed")
            return []
        return list(offered(self.samples, self.batch_size))

    def _metrics(self, module: DiffusionSelfDistillation, batches: list[PairBatch]) -> dict[str, Metric]:
        """Return the metrics that the data and the architecture allow, on the module's device."""
        if not batches:
            return {}
        metrics: dict[str, Metric] = {}
        with_reference = batches[0].reference is not None
        if all(_of_miniature(batch) for batch in batches):
            metrics = {"identity_accuracy": IdentityAccuracy(), "prompt_accuracy": PromptAccuracy()}
            if with_reference:
                metrics["copy_paste"] = CopyPaste()
        if with_reference and REFERENCE in module.architecture.frames:
            metrics["reference_psnr"] = ReferencePSNR()
        if not metrics:
            log.info("the samples tell no scene of the miniature, and arch=%s redraws no reference: nothing is probed",
                     module.architecture.name)  # fmt: skip
        return {name: metric.to(module.device) for name, metric in metrics.items()}

    @staticmethod
    def _summarise(pl_module: L.LightningModule, figures: dict[str, float]) -> None:
        if not hasattr(pl_module, "summary"):
            pl_module.summary = {}  # type: ignore[assignment]
        cast(dict[str, Any], pl_module.summary).update(figures)


def _of_miniature(batch: PairBatch) -> bool:
    pictured = batch.target is not None and tuple(batch.target.shape[-2:]) == (RESOLUTION, RESOLUTION)
    return pictured and len(batch.facts) == len(batch) and all(tells_scene(facts) for facts in batch.facts)


def _update(metrics: dict[str, Metric], drawn: dict[str, Any], batch: PairBatch) -> None:
    for name, metric in metrics.items():
        if isinstance(metric, IdentityAccuracy | PromptAccuracy):
            metric.update(drawn[TARGET], batch.facts, batch.keys)
        elif name == "copy_paste":
            metric.update(drawn[TARGET], batch.target, batch.reference)
        else:
            metric.update(drawn[REFERENCE], batch.reference)
