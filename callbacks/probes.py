"""Scores images generated from held-out pairs by the task's metrics; metrics that the data does not allow are left out."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import Any, cast

import lightning as L
from lightning.pytorch.strategies import SingleDeviceStrategy
from torch import Tensor

from callbacks.isolated_sampling import EveryNSteps, isolated_sampling, unconverted
from callbacks.summary import summarise
from dsd_lightning.miniature.metrics.base import SampleMetric
from dsd_lightning.module import DiffusionSelfDistillation
from dsd_lightning.pairs import PairBatch

log = logging.getLogger(__name__)

PREFIX = "probe/"
"""Of the metric names in the loggers; `docs/metrics.md` says what they mean."""

BEFORE = "_before"
"""Suffix, in the summary, of the metrics of the untrained state."""

CEILING = "_ceiling"
"""Suffix, in the summary, of the metrics of the truth passed through the VAE: what a perfect model would score."""

Generate = Callable[[DiffusionSelfDistillation, PairBatch], Mapping[str, Tensor]]
"""Returns the frames generated for a batch, as pixels by name."""


class MiniatureProbe(L.Callback):
    """Generates the datamodule's probe pairs and scores them: before training, every N steps if set, and at the end.

    The pairs and their noise are the same every time. Metrics go to the loggers as `probe/<name>` and to the module's
    `summary` (a dict) under their bare names, those of the untrained state with the suffix `_before`. The summary also
    gets, with the suffix `_ceiling`, what the truth itself scores after a pass through the VAE, encoded and decoded
    as the architecture's canvas is. After the first step EMA weights are used if a callback keeps them. Metrics
    that the data or the architecture cannot give are left out: without the miniature's facts only `reference_psnr`
    remains, and that needs an architecture that reconstructs the reference. In the list of callbacks it comes after
    `callbacks.ema`, so that EMA has handled the step, and before `callbacks.summary`.

    Several devices share the samples among them.

    Args:
        metrics: metrics of the generated pairs, by name; the task's (`task.metrics`).
        samples: held-out pairs, from `trainer.datamodule.probe_batches`.
        batch_size: samples generated at once; with that of a training step, compiled blocks run as compiled for the steps.
        every_n_steps: optimizer steps between probes; None for none before the end.
        before: whether the untrained state is probed too.
        ceiling: whether the truth passed through the VAE is scored too, once, at the start.
    """

    def __init__(
        self,
        metrics: Mapping[str, SampleMetric],
        samples: int = 256,
        batch_size: int = 64,
        every_n_steps: int | None = None,
        before: bool = True,
        ceiling: bool = True,
    ) -> None:
        super().__init__()
        if samples < 1 or batch_size < 1:
            raise ValueError(f"samples={samples} and batch_size={batch_size} must be at least 1")
        self.metrics = dict(metrics)
        self.samples, self.batch_size, self.before, self.ceiling = samples, batch_size, before, ceiling
        self.clock = EveryNSteps(every_n_steps, "every_n_steps")

    # --- Schedule.

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Score the truth and the untrained state, unless the run is resumed; then the checkpoint has their metrics."""
        # Not on_fit_start: there a resumed run has not got its step yet.
        self.clock.start(trainer)
        if trainer.global_step > 0:
            return
        if self.ceiling:
            metrics = self._score(trainer, pl_module, _through_the_vae, ema=False)
            summarise(pl_module, {name + CEILING: value for name, value in metrics.items()})
        if self.before:
            metrics = self.probe(trainer, pl_module, ema=False)
            summarise(pl_module, {name + BEFORE: value for name, value in metrics.items()})

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
        """Probe every N optimizer steps."""
        if self.clock.due(trainer):
            self.probe(trainer, pl_module, ema=True)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Probe the trained state, for the summary too."""
        summarise(pl_module, self.probe(trainer, pl_module, ema=True))

    # --- Scoring.

    def probe(self, trainer: L.Trainer, pl_module: L.LightningModule, ema: bool) -> dict[str, float]:
        """Generate and score the probe pairs, log the metrics and return them by name; empty where none can be computed."""
        metrics = self._score(trainer, pl_module, _by_the_model, ema)
        if not metrics:
            return {}
        for logger in trainer.loggers:
            logger.log_metrics({PREFIX + name: value for name, value in metrics.items()}, step=trainer.global_step)
        values = ", ".join(f"{name} {value:.3f}" for name, value in metrics.items())
        log.info("step %d: %s", trainer.global_step, values)
        for name in metrics:
            if details := self.metrics[name].details():
                log.info("%s, attributes mistaken: %s", name, dict(details))
        return metrics

    def _score(
        self, trainer: L.Trainer, pl_module: L.LightningModule, generate: Generate, ema: bool
    ) -> dict[str, float]:
        """Return the metrics of what `generate` returns for the probe pairs, by name."""
        module = cast(DiffusionSelfDistillation, pl_module)
        with isolated_sampling(trainer, module, ema, _step_batch(trainer)):
            # Reading the batches may use the global generators, too.
            batches = self._batches(trainer)
            metrics = self._possible(module, batches)
            if not metrics:
                return {}
            log.info(
                "step %d: scoring %d held-out samples", trainer.global_step, sum(len(each.keys) for each in batches)
            )
            for index in range(trainer.global_rank, len(batches) + trainer.global_rank, trainer.world_size):
                # All devices generate equally often, as sharded weights demand; a surplus batch is not counted.
                batch = batches[min(index, len(batches) - 1)].to(module.device)
                generated = generate(module, batch)
                if index < len(batches):
                    with unconverted(module):
                        for metric in metrics.values():
                            metric.score(generated, batch)
            with unconverted(module):
                return {name: float(metric.compute()) for name, metric in metrics.items()}

    def _batches(self, trainer: L.Trainer) -> list[PairBatch]:
        offered = getattr(getattr(trainer, "datamodule", None), "probe_batches", None)
        if offered is None:
            log.info("the data has no probe_batches; nothing is probed")
            return []
        return list(offered(self.samples, self.batch_size))

    def _possible(self, module: DiffusionSelfDistillation, batches: list[PairBatch]) -> dict[str, SampleMetric]:
        """Return the metrics that the data and the architecture allow, empty and on the module's device."""
        if not batches:
            return {}
        frames = module.architecture.frames
        possible = {
            name: metric
            for name, metric in self.metrics.items()
            if all(metric.can_score(batch, frames) for batch in batches)
        }
        if not possible:
            log.info("none of the metrics %s can be computed on these samples with arch=%s: nothing is probed",
                     list(self.metrics), module.architecture.name)  # fmt: skip
        for metric in possible.values():
            metric.to(module.device)
            metric.reset()
        return possible


def _step_batch(trainer: L.Trainer) -> int | None:
    """Return the samples of a training step on one device; None among several, whose shards expect a backward pass."""
    alone = isinstance(trainer.strategy, SingleDeviceStrategy)
    size: int | None = getattr(getattr(trainer, "datamodule", None), "batch_size", None)
    return size if alone else None


def _by_the_model(module: DiffusionSelfDistillation, batch: PairBatch) -> Mapping[str, Tensor]:
    """Return what the model generates."""
    return {name: pixels.float() for name, pixels in module.generate(batch).items()}


def _through_the_vae(module: DiffusionSelfDistillation, batch: PairBatch) -> Mapping[str, Tensor]:
    """Return the true frames as a perfect model would generate them."""
    assert batch.target is not None
    frames = module.decode_frames(module.architecture.encode_clean(batch.reference, batch.target, module.codec))
    return {name: pixels.float() for name, pixels in frames.items()}
