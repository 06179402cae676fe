"""Pairs of the miniature world are the same from the pool, as images, and from shards written of them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hydra.utils import get_class, instantiate
from support.commands import SOURCE, compose_train, run, tiny
from support.data.data_sources import (
    batches,
    identity_task,
    opened,
    pairs_of,
    shards_of,
)

from datamodules.commands.write_shards import write_shards
from datamodules.identity import IdentityPairs
from datamodules.sources.miniature import Miniature, MiniaturePairs
from dsd_lightning.cli.errors import REFUSED, message_for_user
from dsd_lightning.images.pixels import to_pixels
from dsd_lightning.module import DiffusionSelfDistillation
from dsd_lightning.shards import PairShards
from dsd_lightning.training.build import build_module
from dsd_lightning.training.run import train

# --- The miniature.


@pytest.fixture(scope="module")
def module(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> DiffusionSelfDistillation:
    return build_module(compose_train(tmp_path_factory.mktemp("run"), *tiny(tiny_base)))


def test_a_pool_holds_the_encodings_of_the_images(module: DiffusionSelfDistillation) -> None:
    pooled, fresh = (
        opened(pairs_of(Miniature(pairs=10, validation_pairs=2, pool=pool)), 6, module) for pool in (True, False)
    )
    for ready, images in zip(batches(pooled), batches(fresh), strict=True):
        assert (ready.keys, ready.epochs, ready.prompts) == (images.keys, images.epochs, images.prompts)
        assert ready.facts == images.facts
        assert ready.target is None
        encoded, text = module.encode(images)
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


def test_few_identities_alternate_in_many_contexts() -> None:
    pairs = MiniaturePairs(pairs_of(Miniature(7, 0)), 7, 0, "training", identities=3)
    shown = [tuple(pair.facts["identity"]) for pair in pairs]
    assert len(set(shown)) == 3
    assert shown[3:] == shown[:4]
    assert len({tuple(pair.facts["target"]) for pair in pairs}) == 7
    fewer = MiniaturePairs(pairs_of(Miniature(2, 0)), 2, 0, "training", identities=2)
    assert [tuple(pair.facts["identity"]) for pair in fewer] == shown[:2]
    with pytest.raises(ValueError, match="identities=0 must be at least 1"):
        MiniaturePairs(pairs_of(Miniature(7, 0)), 7, 0, "training", identities=0)


@pytest.fixture(scope="module")
def miniature_shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("miniature") / "shards"
    assert write_shards(compose_train(out, f"out={out}", "count=10", "seed=3", name="write_shards")).samples == 10
    return out


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
        for image, pixels in ((raw.reference, pair.reference), (raw.target, pair.target)):
            assert (to_pixels(image, 64, 64) - pixels).abs().max() <= 1 / 255 + 1e-6


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


def test_written_shards_train_on_the_pixels_of_the_pool(
    miniature_shards: Path, tiny_base: Path, tmp_path: Path
) -> None:
    generated = opened(pairs_of(Miniature(10, 0, seed=3, pool=False)))
    stored = opened(pairs_of(shards_of(miniature_shards, validation_pairs=0)))
    for one, other in zip(batches(generated), batches(stored), strict=True):
        assert one.keys == other.keys
        assert one.prompts == other.prompts
        torch.testing.assert_close(one.target, other.target, atol=1 / 255 + 1e-6, rtol=0)
        torch.testing.assert_close(one.reference, other.reference, atol=1 / 255 + 1e-6, rtol=0)
    overrides = ["data=shards", f"data.root={miniature_shards}", f"{SOURCE}.workers=0", "trainer.max_steps=2"]
    config = compose_train(tmp_path, *tiny(tiny_base, *overrides, "callbacks.probe.samples=4", "logger=csv"))
    # The shards hold the facts, which the exact metrics need.
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
    refused = run(f"out={miniature_shards}", module=("-m", "datamodules.commands.write_shards"))
    assert refused.returncode == REFUSED
    assert f"out={miniature_shards} is not empty" in refused.stderr
    assert "Traceback" not in refused.stderr
