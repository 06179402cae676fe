"""Runs trained in this process, and their last checkpoint without what was measured by a clock."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from dsd_lightning.checkpoints.folder_io import FolderCheckpointIO, find_last
from dsd_lightning.training.run import train
from support.commands import compose_train


def finish(run_dir: Path, *overrides: str) -> Path:
    """Run the training of `overrides` in this process and return its folder."""
    train(compose_train(run_dir, *overrides), run_dir)
    return run_dir


def final_state(run_dir: Path) -> dict[str, Any]:
    """Return a run's last checkpoint without what was measured by a clock."""
    folder = find_last(run_dir / "checkpoints")
    assert folder is not None
    state = FolderCheckpointIO().load_checkpoint(folder)
    summary = state["summary"]
    del summary["seconds"], state["throughput"]
    for name in [name for name in summary["values"] if name.startswith(("throughput/", "seconds_per_pair"))]:
        del summary["values"][name]
    # The tests' type checker takes random numbers from it whenever it is called.
    for generators in state["generators"]:
        del generators["python"]
    # Lightning counts the validations of a process, not of a run.
    del state["loops"]["fit_loop"]["epoch_loop.val_loop.batch_progress"]
    return state
