"""Sends estimates, and images with their scores, to W&B as tables."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import astuple, fields
from pathlib import Path
from typing import Any

import wandb

from dsd_lightning.evaluation.judging.judgements import Judgement
from dsd_lightning.evaluation.samples.benchmark import Case
from dsd_lightning.evaluation.samples.result_folder import Samples
from dsd_lightning.evaluation.scores.estimates import Estimate, Scores, estimates
from dsd_lightning.images.pixels import load_rgb

ESTIMATES, IMAGES = "evaluation/estimates", "evaluation/images"
"""Names of the tables in W&B."""


def send(
    row: Scores,
    judgements: Iterable[Judgement],
    samples: Samples,
    cases: Sequence[Case],
    folder: Path,
    project: str,
    offline: bool,
    images: int,
) -> None:
    """Send one method's estimates, and its first images with prompts and scores.

    Args:
        row: the method's scores.
        judgements: from which they come.
        samples: its images; cases: of the benchmark.
        folder: for W&B's files.
        project: in W&B.
        offline: keep everything on this machine, for `wandb sync`.
        images: how many to send.
    """
    by_name = estimates(row)
    scored: dict[str, dict[str, Any]] = {}
    for each in judgements:
        name = f"{each.subject}/{each.prompt}_{each.copy}"
        scored.setdefault(name, {})[each.measure] = each.score if each.failure is None else each.failure
    measures = list(row.sums)
    with wandb.init(
        project=project,
        name=row.method,
        dir=folder,
        mode="offline" if offline else "online",
        config={"judge": row.judge, "rule": row.rule, "rubrics": {f"{m}/{k}": digest for m, k, digest in row.rubric}},
    ) as run:
        run.summary.update({name: estimate.value for name, estimate in by_name.items()})
        lines = [[name, *astuple(estimate)] for name, estimate in by_name.items()]
        table = wandb.Table(columns=["estimate", *(field.name for field in fields(Estimate))], data=lines)
        shown = [(case, file) for case in cases if (file := samples.image(case)) is not None][:images]
        rows = [
            [
                case.name,
                case.prompt.text,
                wandb.Image(load_rgb(case.subject.reference)),
                wandb.Image(load_rgb(file)),
                *(str(scored.get(case.name, {}).get(measure, "")) for measure in measures),
            ]
            for case, file in shown
        ]
        columns: list[str | int] = ["case", "prompt", "reference", "result", *measures]
        run.log({ESTIMATES: table, IMAGES: wandb.Table(columns=columns, data=rows)})
