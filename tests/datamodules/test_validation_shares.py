"""Devices share the validation pairs so that each is counted once, and all devices run equally many batches."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from datamodules.base import PairData
from dsd_lightning.pairs import SURPLUS, Task


class Held:
    """A validation dataset of frames of two sizes."""

    def __init__(self, count: int) -> None:
        self.count = count

    def __len__(self) -> int:
        return self.count

    def bucket(self, index: int) -> tuple[int, int]:
        return (64, 64) if index % 3 else (32, 64)


def share(count: int, rank: int, devices: int) -> list[list[tuple[int, int]]]:
    """Return the batches of a device."""
    source: Any = SimpleNamespace(workers=0)
    data = PairData(Task("identity", False, {"target": 1.0}), source, batch_size=2 * devices, seed=0)
    data._training, data._validation = [], Held(count)
    strategy = SimpleNamespace(root_device=torch.device("cpu"))
    data.trainer = SimpleNamespace(world_size=devices, global_rank=rank, strategy=strategy)  # type: ignore[assignment]
    loader: Any = data.val_dataloader()
    return list(loader.batch_sampler)


@pytest.mark.parametrize("devices", [1, 2, 3, 8])
@pytest.mark.parametrize("count", [1, 5, 8, 13])
def test_all_devices_run_equally_many_batches_and_count_each_pair_once(count: int, devices: int) -> None:
    shares = [share(count, rank, devices) for rank in range(devices)]
    assert len({len(batches) for batches in shares}) == 1
    counted = [index for batches in shares for batch in batches for epoch, index in batch if epoch != SURPLUS]
    assert sorted(counted) == list(range(count))
    for batch in (batch for batches in shares for batch in batches):
        assert len({epoch for epoch, _ in batch}) == 1
        assert len({Held(count).bucket(index) for _, index in batch}) == 1
