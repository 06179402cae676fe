"""Draws an ablation's learning curves, and sheets of samples: a row a pair, a column an architecture, the same noise."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

import matplotlib as mpl
from matplotlib.figure import Figure
from PIL import Image

from dsd_lightning.ablation.runs import PROBE, RUNS, Run
from dsd_lightning.ablation.table import LOSS, estimate, ordered
from dsd_lightning.images.pixels import load_rgb
from dsd_lightning.images.sheet import GENERATED, GIVEN, TRUTH, Row, draw_sheet

LEAST_POINTS = 2
"""Points of a curve that is worth a plot."""

PANEL = (4.6, 4.0)
"""Width and height of a plot, inches: one to a phone's width, with letters that can be read there."""

LEGEND_COLUMNS, RESOLUTION = 3, 160
"""Entries of a legend beside each other; pixels an inch."""


def curve_names(runs: Sequence[Run]) -> list[str]:
    """Return the metrics that have a curve: the validation loss, then the probes."""
    names = [LOSS, *sorted({name for run in runs for name in run.curves if name.startswith(PROBE)})]
    return [name for name in names if any(len(run.curves.get(name, ())) >= LEAST_POINTS for run in runs)]


def plot_curves(runs: Sequence[Run]) -> dict[str, bytes]:
    """Return the learning curves of one task's runs as PNGs by metric; of metrics without two points none.

    A thin line a seed, a thick one for their mean at the steps that all seeds of the row have.
    """
    return {name: _plot(runs, name) for name in curve_names(runs)}


def _plot(runs: Sequence[Run], name: str) -> bytes:
    labels = ordered({run.label for run in runs})
    colours = mpl.colormaps["tab10" if len(labels) <= mpl.colormaps["tab10"].N else "turbo"].resampled(
        max(len(labels), 10)
    )
    figure = Figure(figsize=PANEL, dpi=RESOLUTION, layout="constrained")
    panel = figure.subplots()
    for index, label in enumerate(labels):
        curves = [dict(run.curves[name]) for run in runs if run.label == label and run.curves.get(name)]
        shared = sorted(set.intersection(*map(set, curves))) if curves else []
        for curve in curves if len(curves) > 1 else ():
            panel.plot(list(curve), list(curve.values()), color=colours(index), alpha=0.35, linewidth=0.8)
        means = [estimate([curve[step] for curve in curves]) for step in shared]
        heights = [value.mean for value in means if value is not None]
        panel.plot(shared, heights, color=colours(index), linewidth=1.8, marker=".", label=label)
    panel.set_title(name, fontsize=12)
    panel.set_xlabel("optimizer steps", fontsize=11)
    panel.tick_params(labelsize=11)
    panel.grid(alpha=0.25)
    handles, texts = panel.get_legend_handles_labels()
    figure.legend(handles, texts, loc="outside lower center", ncols=LEGEND_COLUMNS, fontsize=10, frameon=False)
    png = io.BytesIO()
    figure.savefig(png, format="png", metadata={"Software": None})
    return png.getvalue()


def sheet_seed(runs: Sequence[Run]) -> int | None:
    """Return the seed whose samples most architectures have, the smallest of several; None if there are no samples."""
    seeds = [run.seed for run in runs if run.samples]
    return min(seeds, key=lambda seed: (-seeds.count(seed), seed)) if seeds else None


def sample_sheet(runs: Sequence[Run], output: Path) -> tuple[Image.Image | None, list[str]]:
    """Return the sheet of one task's runs, and the labels of those that are not on it.

    A row is a held-out pair, a column an architecture, all of one seed, whose noise is keyed by seed and pair. A run whose
    references differ from the others' (other data) is left out.
    """
    seed = sheet_seed(runs)
    shown = [run for run in runs if run.seed == seed and run.samples]
    absent = sorted({run.label for run in runs} - {run.label for run in shown})
    if not shown:
        return None, absent
    first = shown[0]
    references = [(sample.key, sample.images.get(GIVEN)) for sample in first.samples]
    alike = [run for run in shown if [(each.key, each.images.get(GIVEN)) for each in run.samples] == references]
    absent += [run.label for run in shown if run not in alike]
    rows = []
    for index, sample in enumerate(first.samples):
        files = {column: sample.images[column] for column in (GIVEN, TRUTH) if column in sample.images}
        files |= {run.label: run.samples[index].images[GENERATED] for run in alike}
        rows.append(Row({name: load_rgb(output / RUNS / file) for name, file in files.items()}, sample.caption))
    columns = [GIVEN, *ordered(run.label for run in alike), TRUTH]
    title = f"task={first.task}, seed {seed}: the same references, captions and noise"
    return draw_sheet([name for name in columns if any(name in row.images for row in rows)], rows, title), absent
