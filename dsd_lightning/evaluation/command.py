"""Runs `python evaluate.py` and `python evaluate.py table`: generates images, has them judged, writes tables."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

from hydra.utils import instantiate
from omegaconf import DictConfig

from dsd_lightning.cli.console import tidy
from dsd_lightning.evaluation.errors import EvaluationError
from dsd_lightning.evaluation.judging.judgements import Record
from dsd_lightning.evaluation.judging.protocol import Protocol
from dsd_lightning.evaluation.judging.rubrics import Rubrics
from dsd_lightning.evaluation.judging.run import Judging
from dsd_lightning.evaluation.samples.generate import make
from dsd_lightning.evaluation.samples.result_folder import Samples
from dsd_lightning.evaluation.scores.aggregate import require_rule
from dsd_lightning.evaluation.scores.comparison import compare
from dsd_lightning.evaluation.scores.estimates import Scores, collect
from dsd_lightning.evaluation.scores.formats import to_csv, to_html, to_latex, to_markdown, to_text
from dsd_lightning.evaluation.scores.tables import tables
from dsd_lightning.evaluation.stories import command as stories
from dsd_lightning.evaluation.stories.dataset import StoryBenchmark
from dsd_lightning.files.atomic import write_text

log = logging.getLogger(__name__)


def score(config: DictConfig) -> str:
    """Generate a method's images, judge them, write its tables; return them for the terminal."""
    tidy()
    benchmark = instantiate(config.benchmark)
    if isinstance(benchmark, StoryBenchmark):
        return stories.score_stories(config, benchmark)
    rule = require_rule(config.rule)
    measures = tuple(config.protocol.measures)
    rubrics = Rubrics(config.rubrics, measures)
    protocol: Protocol = instantiate(config.protocol, measures=measures)
    cases = benchmark.cases(config.copies)
    samples = Samples(config.method.samples, config.method.name)
    if config.method.maker is not None:
        maker = instantiate(config.method.maker)
        make(maker, samples, cases, config.seed, config.method.batch_size, instantiate(config.part))
    elif not samples.folder.is_dir():
        raise EvaluationError(f"method.samples={samples.folder}: there is no such folder")
    if not config.judging:
        return f"images  {samples.folder}"
    out = Path(config.out)
    record = Record(out / "judgements" / f"{samples.method}.jsonl")
    with instantiate(config.judge) as agent:
        judgements = Judging(agent, rubrics, protocol, record, config.retry).run(samples, cases, config.estimate)
    row = collect(judgements, rule)
    row.require_coverage(config.coverage)
    if config.wandb is not None:
        from dsd_lightning.evaluation.scores import wandb_report  # here, because it takes seconds to import

        out.mkdir(parents=True, exist_ok=True)
        wandb_report.send(row, judgements, samples, cases, out, **config.wandb)
    return _report([row], out / "tables", samples.method)


def table(config: DictConfig) -> str:
    """Make one table of several methods' judgements, and compare each with the first; return it for the terminal.

    Rows that end in .json are scores on stories (`stories.command.table`).
    """
    rule = require_rule(config.rule)
    if not config.rows:
        raise EvaluationError("rows=[]: give files of judgements, such as rows=[a.jsonl,b.jsonl]")
    if all(str(file).endswith(".json") for file in config.rows):
        return stories.table(config)
    rows = []
    for file in map(Path, config.rows):
        if not file.is_file():
            raise EvaluationError(f"rows: there is no file {file}")
        row = collect(Record(file).latest(), rule)
        row.require_coverage(config.coverage)
        rows.append(row)
    return _report(rows, Path(config.out), config.name)


def _report(rows: Sequence[Scores], folder: Path, name: str) -> str:
    layouts = tables(rows)
    comparisons = [str(comparison) for row in rows[1:] for comparison in compare(rows[0], row)]
    text = "Paired comparisons:\n" + "\n".join(comparisons) + "\n" if comparisons else ""
    contents = {
        "txt": to_text(layouts) + ("\n" + text if text else ""),
        "csv": to_csv(rows),
        "md": to_markdown(layouts) + ("\n" + text.replace("\n", "\n\n") if text else ""),
        "tex": to_latex(layouts),
        "html": to_html(layouts),
    }
    for ending, content in contents.items():
        write_text(folder / f"{name}.{ending}", content)
    return f"{contents['txt']}\ntables  {folder / name}.{{{','.join(contents)}}}"
