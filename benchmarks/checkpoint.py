"""Measures bytes and seconds of a checkpoint, against the values that it must hold.

python -m benchmarks.checkpoint [--rank 64] [--rounds 5] [--out FILE.json]

Trains LoRA on a small FLUX for one step, and saves and reads back a run's checkpoint: trained values, EMA weights and
AdamW's moments, with sha256 of every file.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.measure import facts, spread, write
from benchmarks.random_models import TARGETS, transformer
from callbacks.rng_state import generator_states
from dsd_lightning.architectures.parallel import Parallel
from dsd_lightning.checkpoints.adapter import header_of
from dsd_lightning.checkpoints.folder_io import FolderCheckpointIO
from dsd_lightning.flux.lora import Lora


def checkpoint_of(rank: int) -> dict[str, Any]:
    """Return a checkpoint after one step of AdamW."""
    architecture = Parallel(transformer("small", torch.device("cpu"), torch.float32), Lora(rank=rank, targets=TARGETS))
    trained = dict(architecture.trainable())
    optimizer = torch.optim.AdamW(trained.items(), lr=1e-4)
    for parameter in trained.values():
        parameter.grad = torch.randn_like(parameter)
    optimizer.step()
    return {
        "state_dict": {name: value.detach() for name, value in trained.items()},
        "ema": {name: value.detach().clone() for name, value in trained.items()},
        "adapter": header_of(architecture),
        "optimizer_states": [optimizer.state_dict()],
        "generators": [generator_states()],
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """Save and read, and tell bytes and seconds."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.checkpoint", description=__doc__)
    parser.add_argument("--rank", type=int, default=64, help="of the factors")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args(arguments)
    checkpoint = checkpoint_of(args.rank)
    values = sum(value.numel() for value in checkpoint["state_dict"].values())
    files = FolderCheckpointIO()
    taken: dict[str, list[float]] = {"save": [], "read": []}
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / "step_00000001"
        for _ in range(args.rounds):
            start = time.perf_counter()
            files.save_checkpoint(checkpoint, path)
            saved = time.perf_counter()
            files.load_checkpoint(path)
            taken["save"].append(saved - start)
            taken["read"].append(time.perf_counter() - saved)
        written = sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
    needed = values * 4 * 4  # values, EMA weights and two moments, float32
    results = {
        "what": "a checkpoint of trained values, EMA weights and two moments, float32, saved with sha256 and read back",
        **facts(torch.device("cpu")),
        "trained_values": values,
        "bytes": written,
        "bytes_over_values_moments_and_ema": written / needed,
        "seconds": {name: spread(each) for name, each in taken.items()},
    }
    write(args.out, results)


if __name__ == "__main__":
    main()
