"""Orders samples by a pure function of (seed, epoch), so that resuming needs a position alone.

An epoch is a list of *global* batches, each from one bucket (one image size). Every device takes its slice of each. The
position is counted in global batches, so the number of devices may change while every bucket's global batch stays the
same: with buckets larger than the full size it is rounded down to a multiple of the devices.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from torch.utils.data import DataLoader, Sampler

from dsd_lightning.pairs import PairBatch
from dsd_lightning.randomness import numpy_generator

Size = tuple[int, int]
Draw = tuple[int, int]
"""An (epoch, index) that identifies a sample of a dataset and seeds its random draws."""


class SampleOrder:
    """The global batches of every epoch.

    Args:
        buckets: each sample's (height, width).
        batch_size: samples a global batch at the size of `full_size`; larger buckets get proportionally fewer.
        full_size: (height, width) that `batch_size` refers to.
        seed: of the permutations.
        divisible_by: number of devices; batch sizes are rounded down to its multiples.
    """

    def __init__(
        self, buckets: Sequence[Size], batch_size: int, full_size: Size, seed: int, divisible_by: int = 1
    ) -> None:
        if not buckets:
            raise ValueError("no training sample: check data.root, or data.datamodule.source.pairs of the miniature")
        if batch_size % divisible_by:
            raise ValueError(f"the global batch of {batch_size} cannot be divided among {divisible_by} devices")
        self.seed = seed
        self.members: dict[Size, list[int]] = {}
        for index, size in enumerate(buckets):
            self.members.setdefault(size, []).append(index)
        pixels = full_size[0] * full_size[1]
        self.batch_sizes = {
            size: max(
                divisible_by, int(batch_size * min(1.0, pixels / (size[0] * size[1]))) // divisible_by * divisible_by
            )
            for size in self.members
        }
        self.batches_per_epoch = sum(-(-len(m) // self.batch_sizes[size]) for size, m in self.members.items())

    def epoch(self, epoch: int) -> list[list[int]]:
        """Return the epoch's global batches; the last one of a bucket is filled up from the bucket's beginning."""
        rng = numpy_generator(self.seed, "order", epoch)
        batches: list[list[int]] = []
        for size in sorted(self.members):
            order = rng.permutation(np.asarray(self.members[size]))
            count = self.batch_sizes[size]
            filled = np.resize(order, -(-len(order) // count) * count)
            batches += [[int(i) for i in chunk] for chunk in filled.reshape(-1, count)]
        return [batches[i] for i in rng.permutation(len(batches))]

    def batch(self, position: int) -> tuple[int, list[int]]:
        """Return (epoch, indices) of the global batch at `position`."""
        epoch, within = divmod(position, self.batches_per_epoch)
        return epoch, self.epoch(epoch)[within]


class _RankBatches(Sampler[list[Draw]]):
    """One device's slice of every global batch, from a position to the end of the run."""

    def __init__(self, order: SampleOrder, first: int, last: int, rank: int, world_size: int) -> None:
        self.order, self.first, self.last, self.rank, self.world_size = order, first, last, rank, world_size

    def __iter__(self) -> Iterator[list[Draw]]:
        current, batches = -1, []
        for position in range(self.first, self.last):
            epoch, within = divmod(position, self.order.batches_per_epoch)
            if epoch != current:
                current, batches = epoch, self.order.epoch(epoch)
            yield [(epoch, index) for index in batches[within][self.rank :: self.world_size]]

    def __len__(self) -> int:
        return self.last - self.first


class PairLoader:
    """The training loader: sized, resumable at any batch, with or without data workers.

    Lightning saves `state_dict()` and restores it before the first batch. The position counts the batches yielded,
    not those that workers have read ahead. Where a run is resumed with other batches (size, buckets, pairs), it goes on at
    the same share of the same epoch: `ahead` is by how many batches that is further than the position.

    Args:
        dataset: indexed by (epoch, index).
        order: the global batches.
        batches: length of the whole run, in batches.
        rank, world_size: this device among all.
        options: further arguments of `torch.utils.data.DataLoader`.
    """

    def __init__(
        self, dataset: Any, order: SampleOrder, batches: int, rank: int = 0, world_size: int = 1, **options: Any
    ) -> None:
        self.dataset, self.order, self.batches = dataset, order, batches
        self.rank, self.world_size, self.options = rank, world_size, options
        self.position = self.ahead = 0

    def __len__(self) -> int:
        return self.batches

    def __iter__(self) -> Iterator[PairBatch]:
        first, last = self.position + self.ahead, self.batches + self.ahead
        slices = _RankBatches(self.order, first, last, self.rank, self.world_size)
        for batch in DataLoader(self.dataset, batch_sampler=slices, **self.options):
            self.position += 1
            yield batch

    def state_dict(self) -> dict[str, int]:
        """Return the position, and what relates it to epochs, in global batches."""
        return {"position": self.position, "ahead": self.ahead, "batches_per_epoch": self.order.batches_per_epoch}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Go on from a saved position."""
        self.position, self.ahead = int(state["position"]), int(state.get("ahead", 0))
        before, now = int(state.get("batches_per_epoch", 0)), self.order.batches_per_epoch
        if before not in (0, now):
            epoch, within = divmod(self.position + self.ahead, before)
            self.ahead = epoch * now + -(-within * now // before) - self.position
