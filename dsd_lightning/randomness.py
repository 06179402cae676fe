"""Every random draw, keyed by what it is for: (seed, epoch, sample id, frame, purpose, ...).

No draw depends on how many came before it, on the process that makes it or on the batch it falls into. So a resumed run,
another number of devices and two architectures compared on the same data see the same noise, timesteps and dropouts.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
import torch

Key = int | str | bool | float


def key_to_int(*key: Key) -> int:
    """Return a 63-bit integer that depends on every part of `key` (type and value) and on nothing else."""
    text = "\x1f".join(f"{type(part).__name__}:{part!r}" for part in key)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1


def numpy_generator(*key: Key) -> np.random.Generator:
    """Return a NumPy generator for `key`; equal keys give equal streams on every machine."""
    return np.random.Generator(np.random.Philox(key_to_int(*key)))


def torch_generator(*key: Key) -> torch.Generator:
    """Return a CPU torch generator for `key`; draw on the CPU and move, so that devices agree."""
    return torch.Generator().manual_seed(key_to_int(*key))


def normal(shape: Sequence[int], *key: Key) -> torch.Tensor:
    """Return standard normal float32 noise of `shape` for `key`, on the CPU."""
    return torch.randn(tuple(shape), generator=torch_generator(*key))


def uniform(*key: Key) -> float:
    """Return one number, uniform in [0, 1), for `key`."""
    return (key_to_int(*key) >> 10) / float(1 << 53)
