"""Prepares CUDA for a training process, and explains what a machine lacks for it."""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import MutableMapping
from pathlib import Path

import torch

log = logging.getLogger(__name__)

ALLOCATOR = ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF")
"""Variables that configure PyTorch's allocator: today's name, and the older one."""

LOCAL_RANKS = ("LOCAL_RANK", "SLURM_LOCALID")
"""Variables in which launchers number the processes of a machine: torchrun and Lightning, and SLURM."""

SHARED_MEMORY = Path("/dev/shm")
"""Where the loader's processes put the batches that they hand over."""

SMALL_SHARED_MEMORY = 2**30
"""Bytes; containers have 64 MiB by default."""


def prepare_cuda(environment: MutableMapping[str, str] = os.environ) -> None:
    """Set the allocator, float32 products and the device of this process, before anything is put on a GPU.

    - Segments of the allocator may grow, so that batches of unequal size do not fragment memory, unless the environment
      configures the allocator itself.
    - float32 products use TF32: what is float32 under `bf16-mixed` is small, and neither needs more than 10 bits of mantissa.
    - Each process of a machine has a GPU of its own from the start; otherwise what runs before the trainer chooses one
      (`compile=auto` builds a first kernel) would take memory of the first GPU in all of them.

    Args:
        environment: this process's variables.
    """
    if not any(name in environment for name in ALLOCATOR):
        environment[ALLOCATOR[0]] = "expandable_segments:True"
    torch.set_float32_matmul_precision("high")
    rank = next((environment[name] for name in LOCAL_RANKS if name in environment), None)
    if rank is not None and int(rank) < torch.cuda.device_count():
        torch.cuda.set_device(int(rank))


def warn_of_small_shared_memory(workers: int, place: Path = SHARED_MEMORY) -> None:
    """Log a warning if the shared memory may be too small for the batches of `workers` loader processes."""
    if not workers or not place.is_dir():
        return
    size = shutil.disk_usage(place).total
    if size < SMALL_SHARED_MEMORY:
        log.warning(
            "%s has %d MiB, and %d loader processes hand over their batches through it. If a worker is killed by a bus "
            "error, start the container with --shm-size=8g (or --ipc=host), or set data.datamodule.source.workers=0",
            place,
            size // 2**20,
            workers,
        )
