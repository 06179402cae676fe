"""How does a study reach its readers? One page to look at, one for a repository's front, and the metrics as JSON and CSV."""

from __future__ import annotations

import base64
import csv
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from dsd_lightning.ablation.plots import draw_curves, draw_samples
from dsd_lightning.ablation.runs import StudyError, Unfinished, collect, load, write_whole
from dsd_lightning.ablation.table import COSTS, Table, tables
from dsd_lightning.images.sheet import save_whole

FINDINGS = "findings.md"
"""In the report's folder: what its readers should know of it, written by hand; shown on top if it is there.

A first line `# TITLE` is the report's title.
"""

TITLE = "What the runs say"
"""Of a report without findings."""


@dataclass(frozen=True)
class Section:
    """One task of the report: its table, the files of its images (None where there is nothing to draw), what is missing."""

    table: Table
    curves: str | None
    samples: str | None
    absent: Sequence[str]


def make(sweep: Path | None, output: Path) -> list[Unfinished]:
    """Collect the finished runs of `sweep` to `output` and write the report of all runs collected there.

    Args:
        sweep: a sweep's folder; None to write the report of what was collected before.
        output: receives `report.html`, `report.md`, `report.json`, `table.csv`, a PNG of curves and one of samples a task,
            and `runs/`, one JSON file a run.

    Returns:
        the runs that have no metrics yet.

    Raises:
        StudyError: if there is no finished run, or `sweep` is no sweep's folder.
    """
    others = collect(sweep, output) if sweep is not None else []
    runs = load(output)
    if not runs:
        states = "; ".join(f"{each.task}/{each.label}/seed{each.seed} is {each.state}" for each in others[:4])
        raise StudyError(f"no run is finished: {states or f'{output} holds no runs'}")
    sections = []
    for table in tables(runs):
        members = [run for run in runs if run.task == table.task]
        curves, samples = f"curves_{table.task}.png", f"samples_{table.task}.png"
        drawn = draw_curves(members)
        if drawn is not None:
            write_whole(output / curves, drawn)
        sheet, absent = draw_samples(members, output)
        if sheet is not None:
            save_whole(sheet, output / samples)
        shown = (curves if drawn is not None else None, samples if sheet is not None else None)
        sections.append(Section(table, *shown, absent))
    write_pages(sections, others, output)
    return others


def write_pages(sections: Sequence[Section], others: Sequence[Unfinished], output: Path) -> None:
    """Write the pages and the tables of a report whose images lie in `output`."""
    environment = Environment(
        loader=PackageLoader("dsd_lightning.ablation", "."),
        autoescape=lambda name: name is not None and name.endswith(".html.j2"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    title, findings = _findings(output / FINDINGS)
    shared: dict[str, Any] = {
        "sections": sections,
        "others": others,
        "headings": {name: heading for name, (heading, _) in COSTS.items()},
        "title": title,
        "findings": findings,
    }
    inlined = {
        name: base64.b64encode((output / name).read_bytes()).decode()
        for section in sections
        for name in (section.curves, section.samples)
        if name is not None
    }
    page = environment.get_template("report.html.j2").render(shared, images=inlined)
    write_whole(output / "report.html", page.encode())
    write_whole(output / "report.md", environment.get_template("report.md.j2").render(shared).encode())
    written = {
        "tables": [_plain(section.table) for section in sections],
        "unfinished": [asdict(each) for each in others],
    }
    write_whole(output / "report.json", (json.dumps(written, indent=1) + "\n").encode())
    write_whole(output / "table.csv", _csv([section.table for section in sections]).encode())


def _findings(path: Path) -> tuple[str, str]:
    """Return the title and the text below it."""
    text = path.read_text(encoding="utf-8").strip() if path.exists() else ""
    if not text.startswith("# "):
        return TITLE, text
    first, _, rest = text.partition("\n")
    return first.removeprefix("# ").strip(), rest.strip()


def _unit(name: str) -> float:
    return COSTS[name][1] if name in COSTS else 1.0


def _plain(table: Table) -> Mapping[str, Any]:
    """Return a table in the units of `summary.json`."""
    rows = [
        {
            "label": row.label,
            "seeds": list(row.seeds),
            "metrics": {
                name: {
                    "mean": value.mean * _unit(name),
                    "half_width": None if value.half_width is None else value.half_width * _unit(name),
                    "count": value.count,
                }
                for name, value in row.metrics.items()
            },
        }
        for row in table.rows
    ]
    return {"task": table.task, "rows": rows, "differences": table.differences}


def _csv(all_tables: Sequence[Table]) -> str:
    """Return one line a task, architecture and metric, in the units of `summary.json`."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["task", "architecture", "metric", "mean", "half_width_95", "seeds"])
    for table in all_tables:
        for row in table.rows:
            for name, value in row.metrics.items():
                half = "" if value.half_width is None else repr(value.half_width * _unit(name))
                writer.writerow([table.task, row.label, name, repr(value.mean * _unit(name)), half, value.count])
    return text.getvalue()
