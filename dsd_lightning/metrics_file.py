"""`metrics.csv`: every logged figure of a run, one row a step, going on where a resumed run went on."""

from __future__ import annotations

import csv
import os
from argparse import Namespace
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities import rank_zero_only


class MetricsFile(Logger):
    """A Lightning logger that writes a CSV file with a `step` column and a column a metric.

    Rows are flushed as they come. A file that is already there is kept up to the step at which the resumed run logs
    first (what it logs there is added to that row, which may hold figures that are not measured again); later rows,
    which the interrupted run wrote after its last checkpoint, are replaced.
    """

    def __init__(self, path: str | Path) -> None:
        super().__init__()
        self.path = Path(path)
        self._columns: list[str] = ["step"]
        self._rows: list[dict[str, str]] = []
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
        """Do nothing: Hydra writes the configuration beside the file."""

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        """Write a row; metrics of one step that come one after another share it."""
        number = step if step is not None else 0
        if not self._opened:
            self._read_before(number)
        values = {name: repr(float(value)) for name, value in metrics.items() if name != "epoch"}
        new = [name for name in values if name not in self._columns]
        if self._rows and self._rows[-1]["step"] == str(number):
            self._rows[-1] |= values
            rewrite = True
        else:
            self._rows.append({"step": str(number), **values})
            rewrite = bool(new)
        self._columns += sorted(new)
        if rewrite or not self.path.exists():
            self._rewrite()
        else:
            with self.path.open("a", newline="") as file:
                csv.DictWriter(file, self._columns).writerow(self._rows[-1])

    def _read_before(self, step: int) -> None:
        self._opened = True
        if not self.path.exists():
            self.path.parent.mkdir(parents=True, exist_ok=True)
            return
        with self.path.open(newline="") as file:
            reader = csv.DictReader(file)
            self._columns = list(reader.fieldnames or ["step"])
            self._rows = [{k: v for k, v in row.items() if v} for row in reader if int(row["step"]) <= step]
        self._rewrite()

    def _rewrite(self) -> None:
        temporary = self.path.with_name(f".{self.path.name}.partial")
        with temporary.open("w", newline="") as file:
            writer = csv.DictWriter(file, self._columns)
            writer.writeheader()
            writer.writerows(self._rows)
        os.replace(temporary, self.path)
