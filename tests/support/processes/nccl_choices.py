"""Trains a run in one of several gloo processes in which Lightning chooses as it does under NCCL.

`tests/support/processes/nccl_choices.py RUN_DIR [--kill-in-validation] OVERRIDES`, by `ranks.two_ranks`.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning.pytorch.loops.utilities as loops
import torch

from dsd_lightning.checkpoints.folder_io import list_steps
from dsd_lightning.module import DiffusionSelfDistillation
from dsd_lightning.runs.folder import CHECKPOINTS
from dsd_lightning.training.run import train
from support.commands import compose_train
from support.processes.ranks import take_rank

KILL = "--kill-in-validation"
FACTS = "facts_of_rank_{}.json"
"""In the run's folder: the mode of each validation of a process, and how many graphs it had compiled after each batch."""


def choose_as_under_nccl() -> None:
    """Let Lightning's loops see the backend's name "nccl": by it they choose how validation leaves out gradients."""
    loops.dist = SimpleNamespace(get_backend=lambda: "nccl")  # type: ignore[attr-defined]


def main(run_dir: Path, *overrides: str) -> None:
    """Train, and write what this process saw; with `KILL`, the second process is killed in the first validation."""
    rank = int(os.environ["RANK"])
    facts: dict[str, Any] = {"inference_mode": [], "graphs": []}
    killed = KILL in overrides

    def note_validation(module: DiffusionSelfDistillation) -> None:
        facts["inference_mode"].append(torch.is_inference_mode_enabled())
        while killed and not list_steps(run_dir / CHECKPOINTS):
            time.sleep(0.05)  # a thread writes it
        if killed and rank == 1:
            os.kill(os.getpid(), signal.SIGKILL)

    def note_graphs(*_: Any) -> None:
        facts["graphs"].append(torch._dynamo.utils.counters["stats"]["unique_graphs"])

    DiffusionSelfDistillation.on_validation_start = note_validation  # type: ignore[method-assign]
    DiffusionSelfDistillation.on_train_batch_end = note_graphs  # type: ignore[method-assign]
    choose_as_under_nccl()
    train(compose_train(run_dir, *(each for each in overrides if each != KILL), as_it_is=True), run_dir)
    (run_dir / FACTS.format(rank)).write_text(json.dumps(facts))


if __name__ == "__main__":
    take_rank()
    torch.set_num_threads(1)
    main(Path(sys.argv[1]), *sys.argv[2:])
