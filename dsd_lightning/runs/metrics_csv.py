"""Writes `metrics.csv`: every logged metric of a run, one row a step, continued by a resumed run."""

from __future__ import annotations

import csv
from argparse import Namespace
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities import rank_zero_only

from dsd_lightning.files.atomic import replacing


class MetricsFile(Logger):
    """A Lightning logger that writes a CSV file with a `step` column and a column a metric.

    Rows stand in the order of their steps; metrics of one step share a row, also when they come one after another. A
    file that is already there is kept up to one step beyond what the resumed run logs first (Lightning counts a step's
    losses from 0, probes count the steps done); later rows, which the interrupted run wrote after its last checkpoint,
    are replaced.
    """

    def __init__(self, path: str | Path) -> None:
        super().__init__()
        self.path = Path(path)
        self._columns: list[str] = ["step"]
        self._rows: dict[int, dict[str, str]] = {}
        self._opened = False

    @property
    def name(self) -> str:
        """The file's name."""
        return self.path.name

    @property
    def version(self) -> str:
        """Empty: the run folder is the version."""
        return ""

    @rank_zero_only
    def log_hyperparams(self, params: dict[str, Any] | Namespace, *args: Any, **kwargs: Any) -> None:
        """Do nothing: the run's record holds the configuration."""

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        """Write a row; metrics of one step that come one after another share it."""
        number = step if step is not None else 0
        if not self._opened:
            self._read_before(number)
        values = {name: repr(float(value)) for name, value in metrics.items() if name != "epoch"}
        new = [name for name in values if name not in self._columns]
        is_last = number > max(self._rows, default=-1)
        self._rows.setdefault(number, {"step": str(number)}).update(values)
        self._columns += sorted(new)
        if new or not is_last or not self.path.exists():
            self._rewrite()
        else:
            with self.path.open("a", newline="") as file:
                csv.DictWriter(file, self._columns).writerow(self._rows[number])

    def _read_before(self, step: int) -> None:
        self._opened = True
        if not self.path.exists():
            self.path.parent.mkdir(parents=True, exist_ok=True)
            return
        with self.path.open(newline="") as file:
            # Not `Table`, which refuses the half-written last row of a run that was killed.
            header, *cells = list(csv.reader(file)) or [["step"]]
            self._columns = header
            named = [dict(zip(header, row, strict=False)) for row in cells if row]
            rows = {int(row["step"]): {name: value for name, value in row.items() if value} for row in named}
            self._rows = {number: row for number, row in rows.items() if number <= step + 1}
        self._rewrite()

    def _rewrite(self) -> None:
        with replacing(self.path) as temporary, temporary.open("w", newline="") as file:
            writer = csv.DictWriter(file, self._columns)
            writer.writeheader()
            writer.writerows(row for _, row in sorted(self._rows.items()))
