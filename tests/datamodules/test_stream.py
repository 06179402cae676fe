"""Every sample is used once an epoch, in batches of one size, and a position is all that resuming needs."""

from __future__ import annotations

from collections import Counter
from itertools import islice, pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import Dataset

from datamodules.stream import Draw, PairLoader, SampleOrder, Size

SIZES: list[Size] = [(64, 64), (32, 64), (96, 64)]
FULL: Size = (64, 64)
BUCKETS = [SIZES[i % 7 % 3] for i in range(53)]


class Numbers(Dataset[Draw]):
    """Returns (epoch, index) itself."""

    def __getitem__(self, draw: Draw) -> Draw:
        return draw


def loader(length: int, rank: int = 0, world_size: int = 1, workers: int = 0, **order: Any) -> PairLoader:
    settings = {"buckets": BUCKETS, "batch_size": 8, "full_size": FULL, "seed": 0, "divisible_by": 2} | order
    return PairLoader(
        Numbers(),
        SampleOrder(**settings),
        length,
        rank,
        world_size,
        collate_fn=list,
        num_workers=workers,
        multiprocessing_context="fork" if workers else None,
    )


# --- The order.

ANY_BUCKETS = st.lists(st.sampled_from(SIZES), min_size=1, max_size=60)


@given(ANY_BUCKETS, st.integers(1, 4), st.integers(1, 3), st.integers(0, 3))
def test_every_epoch_sees_every_sample_in_batches_of_one_size(
    buckets: list[Size], share: int, devices: int, epoch: int
) -> None:
    order = SampleOrder(buckets, share * devices, FULL, 0, devices)
    batches = order.epoch(epoch)
    assert len(batches) == order.batches_per_epoch
    seen = Counter(index for batch in batches for index in batch)
    assert set(seen) == set(range(len(buckets)))
    for batch in batches:
        assert len({buckets[index] for index in batch}) == 1
        assert len(batch) % devices == 0
        assert len(batch) == order.batch_sizes[buckets[batch[0]]]
    # Only to fill up a bucket's last batch is a sample seen again.
    repeated = sum(seen.values()) - len(seen)
    assert repeated <= sum(order.batch_sizes[size] - 1 for size in set(buckets))


def test_larger_images_come_in_smaller_batches_and_smaller_ones_do_not_come_in_larger() -> None:
    order = SampleOrder(BUCKETS, 12, FULL, 0)
    assert order.batch_sizes == {(64, 64): 12, (32, 64): 12, (96, 64): 8}


def test_the_order_is_a_function_of_seed_and_epoch() -> None:
    def order(seed: int) -> SampleOrder:
        return SampleOrder(BUCKETS, 8, FULL, seed)

    assert order(0).epoch(3) == order(0).epoch(3)
    assert order(0).epoch(3) != order(0).epoch(4)
    assert order(0).epoch(3) != order(1).epoch(3)
    first = order(0)
    straight = [(epoch, batch) for epoch in range(3) for batch in first.epoch(epoch)]
    assert [first.batch(position) for position in range(len(straight))] == straight


def test_sizes_are_mixed_over_an_epoch() -> None:
    sizes = [BUCKETS[batch[0]] for batch in SampleOrder(BUCKETS, 2, FULL, 0).epoch(0)]
    assert sum(left != right for left, right in pairwise(sizes)) > 5


def test_no_samples_and_indivisible_batches_are_refused() -> None:
    with pytest.raises(ValueError, match="no training sample"):
        SampleOrder([], 8, FULL, 0)
    with pytest.raises(ValueError, match="batch of 9 cannot be divided among 2"):
        SampleOrder(BUCKETS, 9, FULL, 0, 2)


# --- The loader.


def test_batches_carry_their_epoch() -> None:
    whole = loader(20)
    batches = list(whole)
    assert len(batches) == len(whole) == 20
    per_epoch = whole.order.batches_per_epoch
    assert per_epoch < 20
    for position, batch in enumerate(batches):
        assert {epoch for epoch, _ in batch} == {position // per_epoch}
        assert (position // per_epoch, [index for _, index in batch]) == whole.order.batch(position)


@pytest.mark.parametrize("devices", [2, 4])
def test_the_devices_slices_make_up_the_global_batch(devices: int) -> None:
    alone = list(loader(20, divisible_by=devices))
    slices = [list(loader(20, rank, devices, divisible_by=devices)) for rank in range(devices)]
    for position, batch in enumerate(alone):
        mine = [slices[rank][position] for rank in range(devices)]
        assert len({len(part) for part in mine}) == 1
        assert sorted(draw for part in mine for draw in part) == sorted(batch)


@pytest.mark.parametrize(("workers", "position"), [(0, 0), (0, 1), (0, 9), (2, 9), (0, 19)])
def test_a_resumed_loader_goes_on_exactly(workers: int, position: int) -> None:
    resumed = loader(20, workers=workers)
    resumed.load_state_dict({"position": position})
    assert list(resumed) == list(loader(20))[position:]
    assert resumed.state_dict()["position"] == 20


@pytest.mark.parametrize("workers", [0, 2])
def test_the_position_counts_yielded_batches_and_not_those_read_ahead(workers: int) -> None:
    stopped, straight = loader(20, workers=workers), list(loader(20))
    for count, batch in enumerate(islice(stopped, 7), start=1):
        assert batch == straight[count - 1]
        assert stopped.state_dict()["position"] == count
    resumed = loader(20, workers=workers)
    resumed.load_state_dict(stopped.state_dict())
    assert list(resumed) == straight[7:]


@given(st.integers(1, 8), st.integers(1, 8), st.integers(1, 30))
def test_other_batches_go_on_at_the_same_share_of_the_epoch_for_as_many_batches(old: int, new: int, done: int) -> None:
    stopped = loader(done, batch_size=old, divisible_by=1)
    list(stopped)
    resumed = loader(done + 3, batch_size=new, divisible_by=1)
    resumed.load_state_dict(stopped.state_dict())
    first, last = (loader_.order.batches_per_epoch for loader_ in (stopped, resumed))
    rest = list(resumed)
    assert len(rest) == 3, "a run's length is counted in batches, whatever is in them"
    start = resumed.position - 3 + resumed.ahead
    assert done / first <= start / last < done / first + 1 / last
    assert rest[0] == [(start // last, index) for index in resumed.order.batch(start)[1]]
    again = loader(done + 5, batch_size=new, divisible_by=1)
    again.load_state_dict(resumed.state_dict())
    assert {epoch for epoch, _ in next(iter(again))} == {(start + 3) // last}


def test_another_number_of_devices_goes_on_with_the_same_global_batches() -> None:
    stopped = loader(20, rank=1, world_size=2)
    list(islice(stopped, 5))
    resumed = loader(20)
    resumed.load_state_dict(stopped.state_dict())
    assert list(resumed) == list(loader(20))[5:]
