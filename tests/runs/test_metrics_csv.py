"""metrics.csv holds every metric once, in the order of steps, whatever happened to the run."""

from __future__ import annotations

import csv
from pathlib import Path

from dsd_lightning.runs.metrics_csv import MetricsFile


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return [{name: value for name, value in row.items() if value} for row in csv.DictReader(file)]


def test_metrics_of_a_step_share_a_row_and_rows_are_in_order(tmp_path: Path) -> None:
    path = tmp_path / "run" / "metrics.csv"
    log = MetricsFile(path)
    log.log_metrics({"train/loss": 2.0, "epoch": 0}, step=0)
    log.log_metrics({"probe/identity_accuracy": 0.5}, step=2)
    log.log_metrics({"train/loss": 1.5}, step=1)
    log.log_metrics({"val/loss": 3.0}, step=1)
    log.log_metrics({"train/loss": 1.0}, step=2)
    assert rows(path) == [
        {"step": "0", "train/loss": "2.0"},
        {"step": "1", "train/loss": "1.5", "val/loss": "3.0"},
        {"step": "2", "probe/identity_accuracy": "0.5", "train/loss": "1.0"},
    ]


def test_a_resumed_run_replaces_rows_after_its_checkpoint_and_keeps_the_rest(tmp_path: Path) -> None:
    path = tmp_path / "metrics.csv"
    before = MetricsFile(path)
    for step in range(6):
        before.log_metrics({"train/loss": float(step)}, step=step)
    before.log_metrics({"probe/x": 7.0}, step=3)
    resumed = MetricsFile(path)
    resumed.log_metrics({"val/loss": 9.0}, step=2)  # the validation of step index 2, after three steps done
    resumed.log_metrics({"train/loss": 3.0}, step=3)
    assert rows(path) == [
        {"step": "0", "train/loss": "0.0"},
        {"step": "1", "train/loss": "1.0"},
        {"step": "2", "train/loss": "2.0", "val/loss": "9.0"},
        {"step": "3", "train/loss": "3.0", "probe/x": "7.0"},
    ]


def test_values_keep_their_precision(tmp_path: Path) -> None:
    path = tmp_path / "metrics.csv"
    MetricsFile(path).log_metrics({"a": 1 / 3}, step=0)
    assert float(rows(path)[0]["a"]) == 1 / 3
