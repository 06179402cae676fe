"""Pairs of photographs reach training cropped, counted and split as configured, and resume where a stopped run ended."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from hydra.utils import instantiate
from support.commands import SOURCE, compose_train, tiny
from support.data.data_sources import (
    PHOTOGRAPHS,
    batches,
    opened,
    pairs_of,
    photograph,
    same,
    shards_of,
)

from datamodules.base import PairData
from datamodules.samples import LoadedBatch
from datamodules.sources.miniature import Miniature, MiniaturePairs
from datamodules.stream import PairLoader
from dsd_lightning.images.pixels import to_pixels
from dsd_lightning.miniature.world import Identity
from dsd_lightning.pairs import REFERENCE, TARGET
from dsd_lightning.shards import PairShards, ShardWriter
from dsd_lightning.training.run import train

# --- Photographs.


@pytest.mark.parametrize("buckets", ["null", "[[64,64],[64,96],[96,64]]"])
def test_photographs_train(photograph_shards: Path, tiny_base: Path, tmp_path: Path, buckets: str) -> None:
    config = compose_train(
        tmp_path,
        *tiny(
            tiny_base,
            "data=shards",
            f"data.root={photograph_shards}",
            f"{SOURCE}.buckets={buckets}",
            f"{SOURCE}.workers=0",
            "trainer.max_steps=2",
            "trainer.val_check_interval=2",
            "callbacks.probe.samples=2",
            "callbacks.samples.count=2",
            "logger=csv",
        ),
    )
    metrics = train(config, tmp_path)
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["steps"] == 2
    assert summary["train/loss"] > 0
    assert summary["val/loss_right"] > 0
    # Metrics that need the miniature's facts are left out.
    assert {name for name in metrics if name != "seconds_per_pair"} == {
        "reference_psnr",
        "reference_psnr_before",
        "reference_psnr_ceiling",
    }
    assert len(list((tmp_path / "samples").glob("step_*.png"))) == 2


def test_buckets_keep_batches_of_one_size_and_of_as_many_pixels(photograph_shards: Path) -> None:
    sizes = [(64, 64), (64, 96), (96, 64)]
    data = opened(pairs_of(shards_of(photograph_shards, buckets=sizes)))
    seen = {}
    for batch in batches(data):
        assert batch.target is not None
        assert batch.reference is not None
        assert batch.target.shape == batch.reference.shape
        size = tuple(batch.target.shape[-2:])
        seen[size] = len(batch)
        for key in batch.keys:
            name = key.split("-")[0]
            width, height = photograph(name).size
            assert (size == (64, 96)) == (width > height * 1.2), key
    assert {size: count for size, count in seen.items() if size in sizes} == seen
    assert seen == {(64, 64): 4, (64, 96): 2}


def test_random_crops_move_with_the_epoch_and_center_crops_do_not(photograph_shards: Path) -> None:
    for crop, moves in (("random", True), ("center", False)):
        data = opened(pairs_of(shards_of(photograph_shards, crop=crop)))
        dataset = data._training
        shards = PairShards(photograph_shards)
        # A square image leaves nothing to choose.
        index = next(i for i, at in enumerate(dataset.positions) if shards[at].target.width != shards[at].target.height)
        first, again, second = (dataset[epoch, index] for epoch in (0, 0, 1))
        assert torch.equal(first.target, again.target)
        assert torch.equal(first.target, second.target) is not moves
    raw = shards[dataset.positions[index]]
    assert torch.equal(first.target, to_pixels(raw.target, 64, 64))


def test_frames_share_their_crop_only_where_the_task_is_aligned(tmp_path: Path) -> None:
    with ShardWriter(tmp_path / "shards", task="identity", resolution=None) as writer:
        for number, name in enumerate(PHOTOGRAPHS):
            writer.write(f"{name}-{number}", photograph(name), photograph(name), "the same image twice")
    for aligned in (True, False):
        data = opened(pairs_of(shards_of(tmp_path / "shards"), aligned))
        equal = [torch.equal(b.reference, b.target) for b in batches(data)]  # type: ignore[arg-type]
        assert all(equal) if aligned else not any(equal)


def test_images_that_should_show_the_same_pixels_and_differ_in_shape_are_left_out(tmp_path: Path) -> None:
    with ShardWriter(tmp_path / "shards", task="identity", resolution=None) as writer:
        for number, name in enumerate(PHOTOGRAPHS):
            target = photograph(name)
            half = (round(target.width / 2), round(target.height / 2))
            reference = photograph("cat").resize((90, 150)) if name == "coffee" else target.resize(half)
            writer.write(f"{name}-{number}", reference, target, "a photograph")
    for aligned, left_out in ((True, {"coffee-2"}), (False, set())):
        source = shards_of(tmp_path / "shards", validation_pairs=0, max_damaged=1, resolution=(32, 32))
        data = opened(pairs_of(source, aligned, batch_size=2), steps=3)
        assert len(batches(data)) == 3
        assert data.damaged == left_out


def test_images_smaller_than_the_frame_are_replaced_and_counted_once(tmp_path: Path) -> None:
    with ShardWriter(tmp_path / "shards", task="identity", resolution=None) as writer:
        for number, name in enumerate(PHOTOGRAPHS):
            image = photograph(name, 60 if name == "coffee" else 100)
            writer.write(f"{name}-{number}", image, image, "a photograph")
    source = shards_of(tmp_path / "shards", validation_pairs=0, max_damaged=1)
    data = opened(pairs_of(source, batch_size=2), steps=9)
    seen = batches(data)
    assert data.damaged == {"coffee-2"}
    assert {len(batch) for batch in seen} == {2}
    assert "coffee-2" not in {key for batch in seen for key in batch.keys}

    # With buckets they are left out from the start.
    bucketed = shards_of(tmp_path / "shards", validation_pairs=0, buckets=[(64, 64), (64, 96)])
    data = opened(pairs_of(bucketed, batch_size=2), steps=9)
    assert "coffee-2" not in {key for batch in batches(data) for key in batch.keys}
    assert data.damaged == set()


def test_workers_change_nothing(photograph_shards: Path) -> None:
    alone = batches(opened(pairs_of(shards_of(photograph_shards)), steps=8))
    helped = batches(opened(pairs_of(shards_of(photograph_shards, workers=2)), steps=8))
    assert len(alone) == len(helped) == 8
    assert all(same(one, other) for one, other in zip(alone, helped, strict=True))


# --- Held-out samples.


def test_samples_set_aside_are_never_trained_on(photograph_shards: Path) -> None:
    data = opened(pairs_of(shards_of(photograph_shards)), steps=12)
    trained = {key for batch in batches(data) for key in batch.keys}
    aside = {key for batch in data.val_dataloader() for key in batch.pairs.keys}
    probes = {key for batch in data.probe_batches(8, 4) for key in batch.keys}
    assert len(aside) == len(PairShards(photograph_shards)) // 5
    assert not trained & (aside | probes)
    assert trained | aside == set(PairShards(photograph_shards).keys)
    assert probes <= aside


def test_another_set_can_be_validated_on(photograph_shards: Path, tmp_path: Path) -> None:
    with ShardWriter(tmp_path / "other", task="identity", resolution=None) as writer:
        for number in range(5):
            image = photograph("rocket", 200)
            writer.write(f"other-{number}", image, image, "another photograph")
    data = opened(pairs_of(shards_of(photograph_shards, validation_root=str(tmp_path / "other"))), steps=12)
    trained = {key for batch in batches(data) for key in batch.keys}
    aside = {key for batch in data.val_dataloader() for key in batch.pairs.keys}
    assert trained == set(PairShards(photograph_shards).keys)
    assert len(aside) == 3
    assert all(key.startswith("other-") for key in aside)


def test_which_samples_are_set_aside_depends_on_their_keys_alone(photograph_shards: Path, tmp_path: Path) -> None:
    source = PairShards(photograph_shards)
    with ShardWriter(tmp_path / "reversed", task="identity", resolution=None) as writer:
        for position in reversed(range(len(source))):
            raw = source[position]
            writer.write(raw.key, raw.reference, raw.target, raw.caption)
    aside = [
        {key for batch in opened(pairs_of(shards_of(root))).val_dataloader() for key in batch.pairs.keys}
        for root in (photograph_shards, tmp_path / "reversed")
    ]
    assert aside[0] == aside[1]


def test_held_out_identities_are_never_trained_on() -> None:
    data = pairs_of(Miniature(pairs=300, validation_pairs=20, pool=False))
    for split, held_out in (("training", False), ("validation", True), ("probe", True)):
        pairs = MiniaturePairs(data, 300 if split == "training" else 20, 0, split)
        assert {Identity(*pairs[index].facts["identity"]).held_out for index in range(len(pairs))} == {held_out}
    opened(data)
    facts = [each for batch in batches(data) for each in batch.facts]
    assert facts
    assert not any(Identity(*each["identity"]).held_out for each in facts)
    for batch in [*(each.pairs for each in data.val_dataloader()), *data.probe_batches(10, 5)]:
        assert all(Identity(*each["identity"]).held_out for each in batch.facts)


# --- Resuming.


@pytest.mark.parametrize("workers", [0, 2])
def test_a_loader_goes_on_from_its_saved_position(photograph_shards: Path, workers: int) -> None:
    whole = batches(opened(pairs_of(shards_of(photograph_shards)), steps=7))
    first = opened(pairs_of(shards_of(photograph_shards, workers=workers)), steps=7).train_dataloader()
    yielded = iter(first)
    for _ in range(3):
        next(yielded)
    state = json.loads(json.dumps(first.state_dict()))  # plain, as a checkpoint wants it
    second: PairLoader = opened(pairs_of(shards_of(photograph_shards, workers=workers)), steps=7).train_dataloader()
    second.load_state_dict(state)
    rest = [batch.pairs for batch in second if isinstance(batch, LoadedBatch)]
    assert len(rest) == 4
    assert all(same(one, other) for one, other in zip(rest, whole[3:], strict=True))


@pytest.mark.parametrize("task", ["identity", "text_to_image"])
def test_a_datamodules_state_makes_the_round_trip(task: str, tmp_path: Path) -> None:
    choices = ["data=pretraining"] if task == "text_to_image" else []
    config = compose_train(tmp_path, f"task={task}", *choices)
    data, other = (instantiate(config.data.datamodule) for _ in range(2))
    assert isinstance(data, PairData)
    data.damaged |= {"b", "a"}
    other.load_state_dict(json.loads(json.dumps(data.state_dict())))
    assert other.damaged == {"a", "b"}
    assert other.state_dict() == data.state_dict()


def test_accumulation_makes_the_loader_longer_not_the_epoch(photograph_shards: Path) -> None:
    data = opened(pairs_of(shards_of(photograph_shards)), steps=3, accumulate=4)
    assert len(data.train_dataloader()) == 12
    assert len(batches(data)) == 12
    assert {REFERENCE, TARGET} <= set(data.task.frame_weights)
