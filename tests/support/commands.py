"""Runs of the training command: composed in this process, or as the command that a user types."""

from __future__ import annotations

import csv
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning as L
import torch
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from dsd_lightning.runs.resolvers import register_resolvers
from support.processes import prepared

ROOT = Path(__file__).parents[2]
CONF = ROOT / "conf"

SOURCE = "data.datamodule.source"

PLAIN = ["compile=false", "trainer.precision=32-true"]


def compose_train(run_dir: Path, *overrides: str, name: str = "train", as_it_is: bool = False) -> DictConfig:
    """Return the configuration that `python train.py OVERRIDES hydra.run.dir=RUN_DIR` would have.

    Uncompiled and in float32, unless `overrides` say otherwise or `as_it_is`: quicker for small runs, and the same on
    every machine.
    """
    register_resolvers()
    GlobalHydra.instance().clear()
    with initialize_config_dir(config_dir=str(CONF), version_base="1.3", job_name=name):
        plain = PLAIN if name == "train" and not as_it_is else []
        config = compose(name, [*plain, *overrides, f"hydra.runtime.output_dir={run_dir}"], return_hydra_config=True)
    HydraConfig.instance().set_config(config)  # what ${hydra:...} refers to
    return config


def tiny(base: Path, *overrides: str) -> list[str]:
    """Return overrides for a run of seconds: a base of two blocks, a few pairs, everything else as a user has it."""
    return [
        f"base.model.path={base}",
        "arch.lora.rank=2",
        "data.datamodule.batch_size=4",
        f"{SOURCE}.validation_pairs=4",
        "sampler.num_inference_steps=2",
        "schedule.num_warmup_steps=2",
        *PLAIN,
        "trainer.accelerator=cpu",
        "trainer.log_every_n_steps=1",
        *overrides,
    ]


def tiny_miniature(base: Path, *overrides: str) -> list[str]:
    """Return overrides for a run of seconds on the miniature world."""
    few = [f"{SOURCE}.pairs=12", "trainer.max_steps=4", "trainer.val_check_interval=2"]
    if "callbacks=minimal" not in overrides:
        few += ["callbacks.probe.samples=8", "callbacks.samples.count=2"]
    return tiny(base, *few, *overrides)


def command(*arguments: str, module: Sequence[str] = ("train.py",)) -> list[str]:
    """Return the command line of a command."""
    return [sys.executable, *module, *arguments]


def environment(**variables: str | None) -> dict[str, str]:
    """Return this process's environment with `variables` (None: without), and one thread a process."""
    changed: dict[str, str | None] = {**os.environ, "OMP_NUM_THREADS": "1", **variables}
    return {name: value for name, value in changed.items() if value is not None}


def run(
    *arguments: str, module: Sequence[str] = ("train.py",), **variables: str | None
) -> subprocess.CompletedProcess[str]:
    """Run a command in the checkout and return its output and exit status."""
    return prepared.run(command(*arguments, module=module), env=environment(**variables))


class Pace(L.Callback):
    """Slows a run down, so that a test can stop it in time."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds

    def on_train_batch_start(self, *_: Any) -> None:
        time.sleep(self.seconds)


class BreakOff(L.Callback):
    """Ends a run by an error at the start of a batch, counted from 0."""

    def __init__(self, batch: int) -> None:
        self.batch = batch

    def on_train_batch_start(self, trainer: L.Trainer, *_: Any) -> None:
        if trainer.fit_loop.epoch_loop.total_batch_idx == self.batch:
            raise RuntimeError("broken off")


class Signalled(L.Callback):
    """Sends SIGTERM to its own process at the start of a batch, counted from 0."""

    def __init__(self, batch: int) -> None:
        self.batch = batch

    def on_train_batch_start(self, trainer: L.Trainer, *_: Any) -> None:
        if trainer.fit_loop.epoch_loop.total_batch_idx == self.batch:
            signal.raise_signal(signal.SIGTERM)


def metrics(run_dir: Path) -> list[dict[str, str]]:
    """Return the rows of a run's metrics.csv without what a clock measured."""
    with (run_dir / "metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    return [{k: v for k, v in row.items() if not k.startswith("throughput/")} for row in rows]


def assert_equal(left: Any, right: Any, where: str = "") -> None:
    """Compare nested states bit for bit, naming the first difference."""
    assert type(left) is type(right), where
    if isinstance(left, torch.Tensor):
        assert torch.equal(left, right), where
    elif isinstance(left, dict):
        assert left.keys() == right.keys(), where
        for key, value in left.items():
            assert_equal(value, right[key], f"{where}[{key!r}]")
    elif isinstance(left, list | tuple):
        assert len(left) == len(right), where
        for index, (one, other) in enumerate(zip(left, right, strict=True)):
            assert_equal(one, other, f"{where}[{index}]")
    else:
        assert left == right, f"{where}: {left!r} != {right!r}"
