"""Plots the curves of a run's `metrics.csv` as one PNG."""

from __future__ import annotations

import csv
from pathlib import Path

from dsd_lightning.files.atomic import replacing
from dsd_lightning.runs.folder import METRICS, NoRunError

Curve = tuple[list[int], list[float]]
"""Steps, and the values that were logged at them."""

TOGETHER = (
    *("train/", "val/", "probe/reference_psnr", "probe/", "judge/"),
    *("throughput/pairs_per_second", "optimizer/lr", "optimizer/grad_norm"),
)
"""Beginnings of metrics' names, each of which is a panel if the run logged it; a metric is in the first that fits.

A panel has one unit: decibels would press shares of 1 together.
"""

COUNTED = ("train/loss_spikes",)
"""Metrics that count, among losses: no panel shows them."""

PANEL, COLUMNS, RESOLUTION = (5.2, 3.4), 2, 110
"""Width and height of a panel, inches; panels beside each other; pixels an inch."""


def read_curves(run_dir: Path) -> dict[str, Curve]:
    """Return the curve of each metric of a run, which may still be training.

    Raises:
        NoRunError: the folder has no `metrics.csv`, or one without a row.
    """
    path = run_dir / METRICS
    if not path.is_file():
        raise NoRunError(f"{path} does not exist: {run_dir} is no run's folder, or nothing was logged yet")
    curves: dict[str, Curve] = {}
    with path.open(newline="") as file:
        # Not `Table`, which refuses the half-written last row of a run that is training.
        header, *rows = list(csv.reader(file)) or [[]]
    for row in rows:
        for name, value in zip(header[1:], row[1:], strict=False):
            if value and len(row) == len(header):
                steps, values = curves.setdefault(name, ([], []))
                steps.append(int(row[0]))
                values.append(float(value))
    if not curves:
        raise NoRunError(f"{path} has no complete row yet")
    return curves


def panels(curves: dict[str, Curve]) -> dict[str, list[str]]:
    """Return the metrics of each panel; losses of single timestep bins are left out."""
    shown: dict[str, list[str]] = {start: [] for start in TOGETHER}
    for name in sorted(curves):
        place = next((start for start in TOGETHER if name.startswith(start)), None)
        if place is not None and "_bin" not in name and name not in COUNTED:
            shown[place].append(name)
    return {start: names for start, names in shown.items() if names}


def plot_run(run_dir: Path, out: Path | None = None) -> Path:
    """Write the curves of a run and return the file, `curves.png` in the run's folder by default.

    Raises:
        NoRunError: there is nothing to plot.
    """
    from matplotlib.figure import Figure  # here: an extra, and a second to import

    curves = read_curves(run_dir)
    shown = panels(curves)
    across = min(COLUMNS, len(shown))
    down = -(-len(shown) // across)
    sheet = Figure(figsize=(PANEL[0] * across, PANEL[1] * down), dpi=RESOLUTION, layout="constrained")
    for axes, (start, names) in zip(sheet.subplots(down, across, squeeze=False).flat, shown.items(), strict=False):
        for name in names:
            axes.plot(*curves[name], label=name.removeprefix(start) or name, linewidth=1.2, marker=".", markersize=3)
        axes.set_title(start.rstrip("/"), fontsize=10)
        axes.set_xlabel("optimizer steps", fontsize=8)
        axes.tick_params(labelsize=8)
        axes.grid(alpha=0.25)
        if len(names) > 1:
            axes.legend(fontsize=7)
    for axes in list(sheet.axes)[len(shown) :]:
        axes.set_axis_off()
    out = out or run_dir / "curves.png"
    with replacing(out) as temporary:
        sheet.savefig(temporary, format="png")
    return out
