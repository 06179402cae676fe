"""Generates a small fixed part of a benchmark during training, and logs a judge's scores, under a cost cap."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import lightning as L

from callbacks.isolated_sampling import EveryNSteps, isolated_sampling, unconverted
from callbacks.logged_images import log_images
from dsd_lightning.agents import Agent, AgentFailure
from dsd_lightning.evaluation.judging.judgements import MEASURES, Record
from dsd_lightning.evaluation.judging.protocol import Protocol
from dsd_lightning.evaluation.judging.rubrics import Rubrics
from dsd_lightning.evaluation.judging.run import Judging
from dsd_lightning.evaluation.samples.benchmark import Benchmark
from dsd_lightning.evaluation.samples.generate import Model, Sampling, make, missing_batches
from dsd_lightning.evaluation.samples.result_folder import Samples
from dsd_lightning.evaluation.scores.estimates import collect, estimates
from dsd_lightning.images.pixels import load_rgb
from dsd_lightning.module import DiffusionSelfDistillation
from dsd_lightning.pipeline import TwoFramePipeline
from dsd_lightning.pipeline.schedule import scheduler_of

log = logging.getLogger(__name__)

PREFIX = "judge/"
"""Of the metric names in the loggers; `docs/metrics.md` says what they mean."""


class JudgeProbe(L.Callback):
    """Judges the model every N steps and at the end, by the same few cases and the same noise each time.

    Estimates go to the loggers as `judge/cp`, `judge/pf`, `judge/cp_pf` and so on, images to those that show some. EMA weights
    are used if a callback keeps them (`callbacks.ema`, which comes before this one in the list). All devices generate, since a
    sharded model's forward pass is collective; the first one writes the images and asks the judge while the others wait. When
    the judge's budget, quota or key ends, judging ends on all devices, and training goes on.

    Args:
        agent: the judge; its `budget_usd` caps the cost of all judging.
        benchmark: that subjects come from.
        sampling: how images are generated.
        folder: where images and judgements go, a folder a step.
        subjects: subjects of the benchmark, from all categories in their proportions.
        every_n_steps: optimizer steps between judgings; None for none before the end.
        batch_size: images generated at once.
        seed: of the noise.
        measures: that are judged.
    """

    def __init__(
        self,
        agent: Agent,
        benchmark: Benchmark,
        sampling: Sampling,
        folder: str,
        subjects: int = 4,
        every_n_steps: int | None = None,
        batch_size: int = 16,
        seed: int = 0,
        measures: Sequence[str] = MEASURES,
    ) -> None:
        super().__init__()
        self.cases = benchmark.limited(subjects).cases()
        self.agent = agent
        self.rubrics, self.protocol = Rubrics(None, tuple(measures)), Protocol(tuple(measures))
        self.sampling, self.folder, self.batch_size, self.seed = sampling, Path(folder), batch_size, seed
        self.clock = EveryNSteps(every_n_steps, "every_n_steps")
        self.ended = False

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Count steps from here."""
        self.clock.start(trainer)

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
        """Judge every N optimizer steps."""
        if self.clock.due(trainer):
            self.judge(trainer, pl_module)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Judge the trained state."""
        self.judge(trainer, pl_module)

    def judge(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Generate on all devices, judge and log on the first one, unless judging has ended."""
        if self.ended:
            return
        samples = Samples(self.folder / f"step_{trainer.global_step:08d}", f"step {trainer.global_step}")
        with isolated_sampling(trainer, pl_module, ema=trainer.global_step > 0):
            self._generate(trainer, cast(DiffusionSelfDistillation, pl_module), samples)
            if trainer.is_global_zero:
                with unconverted(pl_module):
                    self._judge(trainer, samples)
            self.ended = trainer.strategy.broadcast(self.ended)

    def _generate(self, trainer: L.Trainer, module: DiffusionSelfDistillation, samples: Samples) -> None:
        """Generate the missing images: the same batches on every device, written by the first one."""
        side = min(load_rgb(self.cases[0].subject.reference).size)
        model = Model(_pipeline(module, side), self.sampling)
        first = trainer.is_global_zero
        batches = trainer.strategy.broadcast(missing_batches(samples, self.cases, self.batch_size) if first else [])
        if first:
            make(model, samples, self.cases, self.seed, self.batch_size)
        else:
            model.described()  # as in `make`: it gathers sharded weights
            for batch in batches:
                model.generate(batch, [load_rgb(case.subject.reference) for case in batch], self.seed)

    def _judge(self, trainer: L.Trainer, samples: Samples) -> None:
        record = Record(samples.folder / "judgements.jsonl")
        try:
            with self.agent as agent:
                records = Judging(agent, self.rubrics, self.protocol, record).run(samples, self.cases, estimate=False)
        except AgentFailure as failure:
            log.warning("the model is not judged any more in this run: %s", failure)
            self.ended = True
            return
        row = collect(records, "sample")
        metrics = {PREFIX + name: estimate.value for name, estimate in estimates(row).items() if "/" not in name}
        metrics[f"{PREFIX}coverage"] = min(row.coverage.values())
        for logger in trainer.loggers:
            logger.log_metrics(metrics, step=trainer.global_step)
        shown = [(case, file) for case in self.cases if (file := samples.image(case)) is not None]
        texts = [case.prompt.text for case, _ in shown]
        log_images(trainer, f"{PREFIX}images", [load_rgb(file) for _, file in shown], texts)
        log.info(
            "step %d: %s", trainer.global_step, ", ".join(f"{name} {value:.3f}" for name, value in metrics.items())
        )


def _pipeline(module: DiffusionSelfDistillation, side: int) -> TwoFramePipeline:
    """Return a pipeline around the module's own parts; nothing is copied."""
    text = module.text_encoder
    return TwoFramePipeline(
        scheduler=scheduler_of(module.shift),
        vae=module.codec.vae,
        text_encoder=text.clip,
        tokenizer=text.clip_tokenizer,
        text_encoder_2=text.t5,
        tokenizer_2=text.t5_tokenizer,
        transformer=module.architecture,
        text_length=text.sequence_length,
        default_size=side,
        model_name="in training",
    )
