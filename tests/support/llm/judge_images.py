"""Judges a folder of images with the server at `URL`, all files below `FOLDER`; tests run it as a process to kill."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dsd_lightning.agents import Agent, Sampling
from dsd_lightning.agents.budget import Budget
from dsd_lightning.agents.cache import AnswerCache
from dsd_lightning.agents.limits import Limits
from dsd_lightning.agents.prices import Prices
from dsd_lightning.agents.providers.openai_chat import OpenAIChat
from dsd_lightning.agents.retries import Retries
from dsd_lightning.evaluation.judging.judgements import MEASURES, Record
from dsd_lightning.evaluation.judging.protocol import Protocol
from dsd_lightning.evaluation.judging.rubrics import Rubrics
from dsd_lightning.evaluation.judging.run import Judging
from dsd_lightning.evaluation.samples.benchmark import folder
from dsd_lightning.evaluation.samples.result_folder import Samples
from dsd_lightning.evaluation.scores.estimates import collect
from dsd_lightning.evaluation.scores.formats import to_csv


def judge(
    url: str,
    root: Path,
    concurrency: int = 4,
    protocol: Mapping[str, Any] | None = None,
    sampling: Mapping[str, Any] | None = None,
    retry: Sequence[str] | str = (),
    measures: tuple[str, ...] = MEASURES,
    model: str = "a-judge",
    rubrics: Path | None = None,
    identity: str | None = "rehearsal",
) -> str:
    """Judge `root/samples` against `root/benchmark`; return the metrics as CSV."""
    agent = Agent(
        OpenAIChat(model, f"{url}/v1", None, identity),
        AnswerCache(root / "answers"),
        Limits(concurrency),
        Retries(attempts=2, first_wait=0.002),
        Budget(None),
        Prices([], free=True),
        Sampling(**{"max_output_tokens": 100, **(sampling or {})}),
        timeout=30.0,
    )
    record = Record(root / "judgements.jsonl")
    settings = {"image_side": 32, **(protocol or {})}
    with agent:
        judging = Judging(agent, Rubrics(rubrics, measures), Protocol(measures, **settings), record, retry).run(
            Samples(root / "samples", "method"), folder(root / "benchmark").cases(), estimate=False
        )
    row = collect(judging, "sample")
    row.require_coverage(0.5)
    return to_csv([row])


if __name__ == "__main__":
    sys.stdout.write(judge(sys.argv[1], Path(sys.argv[2])))
