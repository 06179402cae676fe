"""Speed, waiting, gradient norm and summary of a run are measured right."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from support.commands import compose_train
from support.tiny_run import Run

from callbacks.cost import StepCost
from callbacks.summary import Summary
from callbacks.throughput import Throughput, _peak_of


class Slow(L.Callback):
    """Sleeps in every batch; notes the gradient norm before clipping."""

    def __init__(self) -> None:
        self.norms: list[float] = []

    def on_train_batch_start(self, *_: Any) -> None:
        time.sleep(0.05)

    def on_before_optimizer_step(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
        squares = [p.grad.double().square().sum() for p in pl_module.parameters() if p.grad is not None]
        self.norms.append(float(torch.stack(squares).sum().sqrt()))


def test_speed_and_gradient_norm_are_measured(tmp_path: Path) -> None:
    slow = Slow()
    run = Run(tmp_path, 2, slow).fit()
    metrics = {name: float(value) for name, value in run.trainer.callback_metrics.items()}
    assert 0 < metrics["throughput/pairs_per_second"] < 2 / 0.05  # two pairs a batch
    assert 0 <= metrics["throughput/data_share"] <= 1
    assert metrics["optimizer/grad_norm"] == pytest.approx(slow.norms[-1], rel=1e-5)
    assert metrics["optimizer/grad_norm"] > 0.5  # what it was before it was clipped to 0.5
    assert metrics["optimizer/lr"] == pytest.approx(1e-2 * 2 / 5)  # second of five warm-up steps


def test_the_share_of_the_peak_is_speed_times_operations(tmp_path: Path) -> None:
    run = Run(tmp_path, 3, StepCost())
    (throughput,) = (each for each in run.trainer.callbacks if isinstance(each, Throughput))  # type: ignore[attr-defined]
    throughput.setting = 1e-3
    run.fit()
    metrics = {name: float(value) for name, value in run.trainer.callback_metrics.items()}
    operations = metrics["throughput/pairs_per_second"] * run.module.summary["flops_per_pair"]  # type: ignore[index]
    assert metrics["throughput/mfu"] == pytest.approx(operations / 1e9, rel=1e-5)
    for wrong in (0, "h100"):
        with pytest.raises(ValueError, match=f"peak_tflops={wrong}"):
            Throughput(peak_tflops=wrong)


@pytest.mark.parametrize(
    ("name", "expected"), [("NVIDIA L40S", 362.0), ("NVIDIA GeForce RTX 3090", 71.0), ("Other", None)]
)
def test_the_peak_is_that_of_the_gpu_that_is_there(
    name: str, expected: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: name)
    assert _peak_of(torch.device("cuda")) == expected
    assert _peak_of(torch.device("cpu")) is None


@pytest.mark.parametrize("experiment", ["dsd_paper", "dsd_schnell", "flux_24gb", "flux_48gb", "flux_80gb"])
def test_experiments_leave_the_peak_to_the_gpu(experiment: str) -> None:
    config = compose_train(Path("run"), f"experiment={experiment}", "data.root=FOLDER", as_it_is=True)
    assert config.callbacks.throughput.peak_tflops == "auto"


def test_summary_counts_over_resumes_and_keeps_what_others_measured(tmp_path: Path) -> None:
    first = Run(tmp_path, 3)
    first.module.summary = {"identity_accuracy_before": 0.0625, "undefined": float("nan")}  # type: ignore[assignment]
    first.fit()
    before = json.loads((tmp_path / "summary.json").read_text())
    Run(tmp_path, 5).fit(tmp_path / "checkpoints" / "step_00000003")
    after = json.loads((tmp_path / "summary.json").read_text())
    assert (before["steps"], after["steps"]) == (3, 5)
    assert (before["pairs_seen"], after["pairs_seen"]) == (6, 10)
    assert after["seconds"] > before["seconds"] > 0
    assert after["identity_accuracy_before"] == 0.0625
    assert after["undefined"] is None
    assert after["parameters_trained"] == sum(value.numel() for value in first.trained().values())


def test_summary_of_a_run_with_nothing_left_to_do_stays(tmp_path: Path) -> None:
    Run(tmp_path, 3).fit()
    written = (tmp_path / "summary.json").read_text()
    Run(tmp_path, 3).fit(tmp_path / "checkpoints" / "step_00000003")
    assert (tmp_path / "summary.json").read_text() == written
    assert not list(tmp_path.glob("*.partial"))
    assert Summary(tmp_path / "x").seconds == 0
