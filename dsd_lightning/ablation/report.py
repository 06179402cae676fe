"""Writes the report of an ablation: a page for the browser, one for a repository, and the metrics as JSON and CSV."""

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
from markdown_it import MarkdownIt

from dsd_lightning.ablation.cells import Column, columns
from dsd_lightning.ablation.plots import plot_curves, sample_sheet
from dsd_lightning.ablation.runs import AblationError, Unfinished, collect, load
from dsd_lightning.ablation.table import COSTS, Table, tables
from dsd_lightning.files.atomic import replacing, write_bytes, write_text
from dsd_lightning.files.text import read_text

FINDINGS = "findings.md"
"""In the report's folder: conclusions, written by hand; shown on top if the file is there.

A first line `# TITLE` is the report's title.
"""

TITLE = "Ablation"
"""Of a report without findings."""


@dataclass(frozen=True)
class Section:
    """One task of the report: its table, the files of its plots and of its samples (None: no samples), what is missing."""

    table: Table
    columns: Sequence[Column]
    curves: Sequence[str]
    samples: str | None
    absent: Sequence[str]


def write_report(sweep: Path | None, output: Path) -> list[Unfinished]:
    """Collect the finished runs of `sweep` in `output` and write the report of all runs collected there.

    Args:
        sweep: a sweep's folder; None to write the report of what was collected before.
        output: receives `report.html`, `report.md`, `report.json`, `table.csv`, a PNG of curves a task and metric, one of
            samples a task, and `runs/`, one JSON file a run.

    Returns:
        the runs that have no metrics yet.

    Raises:
        AblationError: if there is no finished run, or `sweep` is no sweep's folder.
    """
    unfinished = collect(sweep, output) if sweep is not None else []
    runs = load(output)
    if not runs:
        states = "; ".join(f"{run.place} is {run.state}" for run in unfinished[:4])
        raise AblationError(f"no run is finished: {states or f'{output} holds no runs'}")
    sections = []
    for table in tables(runs):
        members = [run for run in runs if run.task == table.task]
        samples = f"samples_{table.task}.png"
        plots = {
            f"curves_{table.task}_{name.replace('/', '_')}.png": plot for name, plot in plot_curves(members).items()
        }
        for stale in output.glob(f"curves_{table.task}*.png"):
            stale.unlink()
        for name, plot in plots.items():
            write_bytes(output / name, plot)
        sheet, absent = sample_sheet(members, output)
        if sheet is not None:
            with replacing(output / samples) as temporary:
                sheet.save(temporary, format="PNG")
        sections.append(Section(table, columns(table), list(plots), samples if sheet else None, absent))
    _write_pages(sections, unfinished, output)
    return unfinished


def _write_pages(sections: Sequence[Section], unfinished: Sequence[Unfinished], output: Path) -> None:
    """Write the pages and tables of a report whose images are in `output`."""
    environment = Environment(
        loader=PackageLoader("dsd_lightning.ablation", "."),
        autoescape=lambda name: name is not None and name.endswith(".html.j2"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    title, findings = _findings(output / FINDINGS)
    images = [name for section in sections for name in (*section.curves, section.samples) if name is not None]
    values: dict[str, Any] = {
        "sections": sections,
        "unfinished": unfinished,
        "title": title,
        "findings": findings,
        # Without raw HTML: a report is sent around, and its text comes from a file.
        "rendered": MarkdownIt("commonmark", {"html": False}).enable("table").render(findings),
        "images": {name: base64.b64encode((output / name).read_bytes()).decode() for name in images},
    }
    for page in ("report.html", "report.md"):
        write_text(output / page, environment.get_template(f"{page}.j2").render(values))
    plain = {
        "tables": [_plain(section.table) for section in sections],
        "unfinished": [asdict(run) for run in unfinished],
    }
    write_text(output / "report.json", json.dumps(plain, indent=1) + "\n")
    write_text(output / "table.csv", _csv([section.table for section in sections]))


def _findings(path: Path) -> tuple[str, str]:
    """Return the title and the text below it."""
    text = read_text(path).strip() if path.exists() else ""
    if not text.startswith("# "):
        return TITLE, text
    first, _, rest = text.partition("\n")
    return first.removeprefix("# ").strip(), rest.strip()


def _unit(name: str) -> float:
    return COSTS[name][1] if name in COSTS else 1.0


def _plain(table: Table) -> Mapping[str, Any]:
    """Return a table in the units of `summary.json`."""
    rows = []
    for row in table.rows:
        metrics = {
            name: {
                "mean": value.mean * _unit(name),
                "half_width": None if value.half_width is None else value.half_width * _unit(name),
                "count": value.count,
            }
            for name, value in row.metrics.items()
        }
        rows.append({"label": row.label, "seeds": list(row.seeds), "metrics": metrics})
    return {"task": table.task, "rows": rows, "differences": table.differences}


def _csv(all_tables: Sequence[Table]) -> str:
    """Return one line a task, architecture and metric, in the units of `summary.json`."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["task", "architecture", "metric", "mean", "half_width_95", "seeds"])
    for table in map(_plain, all_tables):
        for row in table["rows"]:
            for name, value in row["metrics"].items():
                half = "" if value["half_width"] is None else repr(value["half_width"])
                writer.writerow([table["task"], row["label"], name, repr(value["mean"]), half, value["count"]])
    return text.getvalue()
