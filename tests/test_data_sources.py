"""Do pairs reach training as they should: from photographs, from the miniature world, from its shards, never from elsewhere?"""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from hydra.utils import get_class, instantiate
from PIL import Image
from skimage import data as photographs
from verbs import SOURCE, compose_train, run, tiny

from datamodules.base import PairData
from datamodules.identity import IdentityPairs
from datamodules.miniature import Miniature, MiniaturePairs
from datamodules.samples import LoadedBatch
from datamodules.shards import Shards
from datamodules.stream import PairLoader
from datamodules.write_shards import write_shards
from dsd_lightning.building import build_module
from dsd_lightning.errors import REFUSED, message_for_user
from dsd_lightning.miniature.world import Identity
from dsd_lightning.module import DiffusionSelfDistillation
from dsd_lightning.pairs import REFERENCE, TARGET, PairBatch, Task
from dsd_lightning.pictures import to_pixels
from dsd_lightning.shards import PairShards, ShardWriter
from dsd_lightning.training import train

PHOTOGRAPHS = ("astronaut", "cat", "coffee", "rocket", "hubble_deep_field", "color")
"""Real photographs of several sizes and aspect ratios that scikit-image brings along, and their first letters' keys."""


def photograph(name: str, long_side: int = 200) -> Image.Image:
    """Return a photograph, shrunk so that tests are quick."""
    pixels = photographs.data_dir  # the folder, for those without a function of their own
    image = Image.open(Path(pixels) / "color.png") if name == "color" else Image.fromarray(getattr(photographs, name)())
    image = image.convert("RGB")
    image.thumbnail((long_side, long_side))
    return image


@pytest.fixture(scope="module")
def photograph_shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return shards of photographs, each with a mirrored one as its reference."""
    root = tmp_path_factory.mktemp("photographs") / "shards"
    with ShardWriter(root, task="identity", resolution=None) as writer:
        for number in range(12):
            name = PHOTOGRAPHS[number % len(PHOTOGRAPHS)]
            target = photograph(name, 200 - 4 * number)
            reference = target.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
            writer.write(f"{name}-{number}", reference, target, f"a photograph: {name}")
    return root


def shards_of(root: Path, **changes: object) -> Shards:
    settings: dict[str, object] = {
        "root": str(root),
        "resolution": (64, 64),
        "buckets": None,
        "validation_pairs": 3,
        "crop": "random",
        "workers": 0,
        "max_damaged": 0,
        "verify": "size",
    }
    return Shards(**(settings | changes))  # type: ignore[arg-type]


def identity_task(aligned: bool = False) -> Task:
    return Task("identity", aligned, {"reference": 0.5, "target": 1.0})


def opened(
    data: PairData, steps: int = 6, module: DiffusionSelfDistillation | None = None, accumulate: int = 1
) -> PairData:
    """Return the datamodule as a trainer of `steps` optimizer steps would set it up."""
    data.trainer = SimpleNamespace(  # type: ignore[assignment]
        max_steps=steps, accumulate_grad_batches=accumulate, world_size=1, global_rank=0, lightning_module=module
    )
    data.setup("fit")
    return data


def pairs_of(source: Shards | Miniature, aligned: bool = False, batch_size: int = 4) -> PairData:
    return IdentityPairs(identity_task(aligned), source, batch_size, seed=0)


def batches(data: PairData) -> list[PairBatch]:
    return [data.on_before_batch_transfer(batch, 0) for batch in data.train_dataloader()]


def same(left: PairBatch, right: PairBatch) -> bool:
    assert left.target is not None
    assert right.target is not None
    return (
        (left.keys, left.epochs, left.prompts) == (right.keys, right.epochs, right.prompts)
        and torch.equal(left.target, right.target)
        and torch.equal(left.reference, right.reference)  # type: ignore[arg-type]
    )


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
    figures = train(config, tmp_path)
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["steps"] == 2
    assert summary["train/loss"] > 0
    assert summary["val/loss_right"] > 0
    # What only the miniature can tell is left out.
    assert {name for name in figures if name != "seconds_per_pair"} == {
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
        # A square picture leaves nothing to choose.
        index = next(i for i, at in enumerate(dataset.positions) if shards[at].target.width != shards[at].target.height)
        first, again, second = (dataset[epoch, index] for epoch in (0, 0, 1))
        assert torch.equal(first.target, again.target)
        assert torch.equal(first.target, second.target) is not moves
    raw = shards[dataset.positions[index]]
    assert torch.equal(first.target, to_pixels(raw.target, 64, 64))


def test_frames_share_their_crop_only_where_the_task_is_aligned(tmp_path: Path) -> None:
    with ShardWriter(tmp_path / "shards", task="identity", resolution=None) as writer:
        for number, name in enumerate(PHOTOGRAPHS):
            writer.write(f"{name}-{number}", photograph(name), photograph(name), "the same picture twice")
    for aligned in (True, False):
        data = opened(pairs_of(shards_of(tmp_path / "shards"), aligned))
        equal = [torch.equal(b.reference, b.target) for b in batches(data)]  # type: ignore[arg-type]
        assert all(equal) if aligned else not any(equal)


def test_pictures_that_should_show_the_same_pixels_and_differ_in_shape_are_left_out(tmp_path: Path) -> None:
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


def test_pictures_smaller_than_the_frame_are_replaced_and_counted_once(tmp_path: Path) -> None:
    with ShardWriter(tmp_path / "shards", task="identity", resolution=None) as writer:
        for number, name in enumerate(PHOTOGRAPHS):
            picture = photograph(name, 60 if name == "coffee" else 100)
            writer.write(f"{name}-{number}", picture, picture, "a photograph")
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


# --- What is never trained on.


def test_samples_set_aside_are_never_trained_on(photograph_shards: Path) -> None:
    data = opened(pairs_of(shards_of(photograph_shards)), steps=12)
    trained = {key for batch in batches(data) for key in batch.keys}
    aside = {key for batch in data.val_dataloader() for key in batch.pairs.keys}
    probes = {key for batch in data.probe_batches(8, 4) for key in batch.keys}
    assert len(aside) == 3
    assert not trained & (aside | probes)
    assert trained | aside == set(PairShards(photograph_shards).keys)
    assert probes <= aside


def test_another_set_can_be_validated_on(photograph_shards: Path, tmp_path: Path) -> None:
    with ShardWriter(tmp_path / "other", task="identity", resolution=None) as writer:
        for number in range(5):
            picture = photograph("rocket", 200)
            writer.write(f"other-{number}", picture, picture, "another photograph")
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


# --- The miniature.


@pytest.fixture(scope="module")
def module(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> DiffusionSelfDistillation:
    return build_module(compose_train(tmp_path_factory.mktemp("run"), *tiny(tiny_base)))


def test_a_pool_holds_what_the_pictures_encode_to(module: DiffusionSelfDistillation) -> None:
    pooled, fresh = (
        opened(pairs_of(Miniature(pairs=10, validation_pairs=2, pool=pool)), 6, module) for pool in (True, False)
    )
    for ready, pictures in zip(batches(pooled), batches(fresh), strict=True):
        assert (ready.keys, ready.epochs, ready.prompts) == (pictures.keys, pictures.epochs, pictures.prompts)
        assert ready.facts == pictures.facts
        assert ready.target is None
        encoded, text = module.encode(pictures)
        given, given_text = module.encode(ready)
        # Batches of another size round differently.
        torch.testing.assert_close(given.clean, encoded.clean, atol=2e-5, rtol=1e-4)
        torch.testing.assert_close(given.reference["canvas"], encoded.reference["canvas"], atol=2e-5, rtol=1e-4)
        torch.testing.assert_close(given_text.sequence, text.sequence, atol=2e-5, rtol=1e-4)
        torch.testing.assert_close(given_text.pooled, text.pooled, atol=2e-5, rtol=1e-4)


def test_pairs_depend_on_their_number_and_the_sources_seed_alone() -> None:
    short = MiniaturePairs(pairs_of(Miniature(3, 0)), 3, 0, "training")
    data = IdentityPairs(identity_task(), Miniature(9, 0), batch_size=1, seed=5)
    long = MiniaturePairs(data, 9, 0, "training")
    other = MiniaturePairs(data, 3, 1, "training")
    for index in range(3):
        assert torch.equal(short[index].target, long[index].target)
        assert short[index].caption == long[index].caption
        assert not torch.equal(short[index].target, other[index].target)


def write(out: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return run(f"out={out}", *arguments, module=("-m", "datamodules.write_shards"))


@pytest.fixture(scope="module")
def miniature_shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("miniature") / "shards"
    written = write(out, "task=identity", "count=10", "seed=3")
    assert written.returncode == 0, written.stderr
    assert f"{out}: 10 pairs" in written.stdout + written.stderr
    return out


@pytest.mark.slow
def test_written_shards_hold_the_pairs_of_the_pool(miniature_shards: Path) -> None:
    data = pairs_of(Miniature(10, 0, seed=3))
    pairs = MiniaturePairs(data, 10, 3, "training")
    stored = PairShards(miniature_shards, task="identity", require_reference=True)
    assert stored.damage == []
    assert stored.index is not None
    assert (stored.index.task, stored.index.resolution) == ("identity", 64)
    assert len(stored) == 10
    for position, raw in enumerate(stored):
        pair = pairs[position]
        assert (raw.key, raw.caption, raw.instruction) == (pair.key, pair.caption, pair.instruction)
        assert raw.facts == pair.facts
        assert raw.provenance == {"source": "miniature", "split": "training", "seed": 3}
        assert raw.reference is not None
        assert pair.reference is not None
        # 8 bits a channel: half a step of 2 / 255.
        for picture, pixels in ((raw.reference, pair.reference), (raw.target, pair.target)):
            assert (to_pixels(picture, 64, 64) - pixels).abs().max() <= 1 / 255 + 1e-6


@pytest.mark.parametrize("task", ["depth", "relighting"])
def test_shards_of_every_task_hold_the_pairs_of_the_miniature(task: str, tmp_path: Path) -> None:
    config = compose_train(tmp_path, f"out={tmp_path / task}", f"task={task}", "count=4", "seed=3", name="write_shards")
    assert write_shards(config).task == task
    relation = instantiate(config.task.relation)
    data = get_class(config.task.datamodule)(relation, Miniature(4, 0, seed=3, pool=False), 2, 0)
    pairs = MiniaturePairs(data, 4, 3, "training")
    for position, raw in enumerate(PairShards(tmp_path / task, task=task, require_reference=True)):
        pair = pairs[position]
        assert raw.reference is not None
        assert pair.reference is not None
        assert (raw.key, raw.caption, raw.instruction, raw.facts) == (
            pair.key,
            pair.caption,
            pair.instruction,
            pair.facts,
        )
        # Depth maps keep 16 bits, colours 8: half a step of 2 / 65535 and of 2 / 255.
        step = 1 / 65535 if task == "depth" else 1 / 255
        assert (to_pixels(raw.reference, 64, 64) - pair.reference).abs().max() <= step + 1e-6
        assert (to_pixels(raw.target, 64, 64) - pair.target).abs().max() <= 1 / 255 + 1e-6


@pytest.mark.slow
def test_written_shards_train_on_the_pixels_of_the_pool(
    miniature_shards: Path, tiny_base: Path, tmp_path: Path
) -> None:
    drawn = opened(pairs_of(Miniature(10, 0, seed=3, pool=False)))
    stored = opened(pairs_of(shards_of(miniature_shards, validation_pairs=0)))
    for one, other in zip(batches(drawn), batches(stored), strict=True):
        assert one.keys == other.keys
        assert one.prompts == other.prompts
        torch.testing.assert_close(one.target, other.target, atol=1 / 255 + 1e-6, rtol=0)
        torch.testing.assert_close(one.reference, other.reference, atol=1 / 255 + 1e-6, rtol=0)
    overrides = ["data=shards", f"data.root={miniature_shards}", f"{SOURCE}.workers=0", "trainer.max_steps=2"]
    config = compose_train(tmp_path, *tiny(tiny_base, *overrides, "callbacks.probe.samples=4", "logger=csv"))
    # The facts come along, so that the exact figures are there.
    assert {"identity_accuracy", "prompt_accuracy", "copy_paste"} <= set(train(config, tmp_path))


def test_write_shards_refuses_what_it_cannot_write(tmp_path: Path, photograph_shards: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "letter.txt").write_text("dear")
    before = sorted(path.name for path in photograph_shards.iterdir())
    for arguments, fragments in {
        (tmp_path / "full",): ("full is not empty", "new or empty"),
        (photograph_shards,): ("is not empty",),
        (tmp_path / "full" / "letter.txt",): ("is a file",),
        (tmp_path / "new", "task=text_to_image"): ("task=text_to_image has no miniature pairs",),
        (tmp_path / "new", "split=testing"): ("split='testing'", "validation"),
        (tmp_path / "new", "count=0"): ("count=0", "at least 1"),
        (tmp_path / "new", "image_format=bmp"): ("bmp", "webp"),
        (tmp_path / "new", "task=identify"): ("task/identify", "identity"),
    }.items():
        out, *overrides = map(str, arguments)
        with pytest.raises(Exception) as refusal:  # noqa: PT011
            write_shards(compose_train(tmp_path, f"out={out}", *overrides, name="write_shards"))
        message = message_for_user(refusal.value)
        assert message is not None, repr(refusal.value)
        for fragment in fragments:
            assert fragment in message
    assert not (tmp_path / "new").exists()
    assert sorted(path.name for path in photograph_shards.iterdir()) == before


@pytest.mark.slow
def test_the_command_that_writes_shards_refuses_without_a_traceback(miniature_shards: Path) -> None:
    refused = write(miniature_shards)
    assert refused.returncode == REFUSED
    assert f"out={miniature_shards} is not empty" in refused.stderr
    assert "Traceback" not in refused.stderr


# --- Going on.


@pytest.mark.parametrize("workers", [0, 2])
def test_a_loader_goes_on_from_its_saved_position(photograph_shards: Path, workers: int) -> None:
    whole = batches(opened(pairs_of(shards_of(photograph_shards)), steps=7))
    first = opened(pairs_of(shards_of(photograph_shards, workers=workers)), steps=7).train_dataloader()
    handed_out = iter(first)
    for _ in range(3):
        next(handed_out)
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
