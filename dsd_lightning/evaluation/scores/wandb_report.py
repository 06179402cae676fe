"""What of a scoring goes to W&B? Every estimate with its interval and numbers as a table, and a table of images."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import wandb

from dsd_lightning.evaluation.judging.judgements import Judgement
from dsd_lightning.evaluation.samples.benchmark import Case
from dsd_lightning.evaluation.samples.layout import Samples
from dsd_lightning.evaluation.scores.estimates import Scores, estimates
from dsd_lightning.images.pixels import load_rgb

ESTIMATES, IMAGES = "evaluation/estimates", "evaluation/images"
"""Names in W&B."""


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
        judgements: of which they are made.
        samples: its images; cases: of the benchmark.
        folder: for W&B's files.
        project: in W&B.
        offline: keep everything here, for `wandb sync`.
        images: how many to send.
    """
    known = estimates(row)
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
        run.summary.update({name: estimate.value for name, estimate in known.items()})
        lines = [[name, f.value, f.low, f.high, f.scored, f.missing] for name, f in known.items()]
        table = wandb.Table(columns=["estimate", "value", "low", "high", "scored", "missing"], data=lines)
        shown = [(case, file) for case in cases if (file := samples.image(case)) is not None][:images]
        drawn = [
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
        run.log({ESTIMATES: table, IMAGES: wandb.Table(columns=columns, data=drawn)})
