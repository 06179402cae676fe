"""Checkpoint folders are written atomically, whatever ends a save, and damage is named and skipped."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from support.models.checkpoint_parts import some_checkpoint
from support.tiny_run import assert_same

from dsd_lightning.checkpoints.adapter import (
    EMA_WEIGHTS,
    HEADER,
    WEIGHTS,
)
from dsd_lightning.checkpoints.folder_io import TRAINING_STATE, FolderCheckpointIO, find_last
from dsd_lightning.checkpoints.sharded import Shards
from dsd_lightning.files import folders
from dsd_lightning.files.atomic import write_json
from dsd_lightning.files.folders import ASIDE, MANIFEST, DamagedError

# --- The folder itself.


def test_round_trip_keeps_every_value(tmp_path: Path) -> None:
    FolderCheckpointIO().save_checkpoint(some_checkpoint(0.1), tmp_path / "step_00000001")
    loaded = FolderCheckpointIO().load_checkpoint(tmp_path / "step_00000001")
    expected = some_checkpoint(0.1)
    assert loaded.keys() == expected.keys()
    assert loaded["adapter"] == expected["adapter"]
    for part in ("state_dict", "ema"):
        assert_same(loaded[part], expected[part])
    assert torch.equal(loaded["optimizer_states"][0]["state"][0]["exp_avg"], torch.full((3,), 0.1))


def test_other_than_plain_types_are_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match=r"checkpoint\['callbacks'\]\['mine'\] is a .*Path"):
        FolderCheckpointIO().save_checkpoint(some_checkpoint(0) | {"callbacks": {"mine": tmp_path}}, tmp_path / "x")
    assert not (tmp_path / "x").exists()


def save(path: Path) -> None:
    FolderCheckpointIO().save_checkpoint(some_checkpoint(2.0), path)


def save_sharded(path: Path) -> None:
    """Save as the only process of a sharded checkpoint."""
    rest = some_checkpoint(2.0)
    own = {(part, "weight"): rest.pop(part)["weight"] for part in ("state_dict", "ema")}
    folders.begin(path)
    FolderCheckpointIO(sharded=True)._write(path, rest, Shards(own, frozenset(("state_dict", "ema")), 0, 1, True))


def save_and_die(save: Callable[[Path], None], path: Path, calls: int) -> bool:
    """Save a checkpoint in a child process that dies at its n-th flush or rename; return whether it did."""
    child = os.fork()
    if child == 0:
        remaining = [calls]

        def dying(function: Callable[..., Any]) -> Callable[..., Any]:
            def call(*arguments: Any) -> Any:
                remaining[0] -= 1
                if remaining[0] < 0:
                    os._exit(9)
                return function(*arguments)

            return call

        os.fsync, os.rename, os.replace = dying(os.fsync), dying(os.rename), dying(os.replace)
        try:
            save(path)
        finally:
            os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9


@pytest.mark.parametrize("way", [save, save_sharded])
@pytest.mark.parametrize("again", [False, True], ids=["new", "replacing"])
def test_death_at_any_moment_of_a_save_leaves_a_complete_checkpoint(
    tmp_path: Path, again: bool, way: Callable[[Path], None]
) -> None:
    kept = tmp_path / "step_00000001"
    path = kept if again else tmp_path / "step_00000002"
    values, calls = set(), 0
    FolderCheckpointIO().save_checkpoint(some_checkpoint(1.0), kept)
    while save_and_die(way, path, calls):
        calls += 1
        last = find_last(tmp_path)
        assert last is not None
        value = float(FolderCheckpointIO().load_checkpoint(last)["state_dict"]["weight"][0])
        assert value in ((1.0, 2.0) if last.name.removesuffix(ASIDE) == path.name else (1.0,))
        values.add(value)
    assert calls >= 7  # four files, the manifest, the folder, the rename
    assert values == {1.0, 2.0}  # it did die before and after the commit
    last = find_last(tmp_path)
    assert last == path
    assert float(FolderCheckpointIO().load_checkpoint(path)["state_dict"]["weight"][0]) == 2.0


@pytest.mark.parametrize("name", [WEIGHTS, EMA_WEIGHTS, HEADER, TRAINING_STATE, MANIFEST])
@pytest.mark.parametrize("damage", ["flip", "cut", "remove"])
def test_damage_is_named_and_skipped(tmp_path: Path, caplog: pytest.LogCaptureFixture, name: str, damage: str) -> None:
    for step in (1, 2):
        FolderCheckpointIO().save_checkpoint(some_checkpoint(step), tmp_path / f"step_{step:08d}")
    file = tmp_path / "step_00000002" / name
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 4
    if damage == "remove":
        file.unlink()
    else:
        file.write_bytes(content if damage == "flip" else content[: len(content) // 2])
    with pytest.raises(DamagedError, match="step_00000002") as refused:
        FolderCheckpointIO().load_checkpoint(tmp_path / "step_00000002")
    if name != MANIFEST:
        assert name in str(refused.value)
    with caplog.at_level(logging.WARNING):
        assert find_last(tmp_path) == tmp_path / "step_00000001"
    assert str(refused.value) in caplog.text


def test_unfinished_save_is_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert find_last(tmp_path / "nowhere") is None
    (tmp_path / "step_00000002.partial").mkdir()
    with caplog.at_level(logging.WARNING):
        assert find_last(tmp_path) is None
    assert "step_00000002.partial" in caplog.text


def fail() -> None:
    raise ZeroDivisionError("as if something broke")


def test_a_failed_block_leaves_the_folder_as_it_was(tmp_path: Path) -> None:
    with folders.atomic_folder(tmp_path / "folder") as folder:
        write_json(folder / "a.json", {"a": 1})
    with pytest.raises(ZeroDivisionError), folders.atomic_folder(tmp_path / "folder") as folder:
        fail()
    folders.verify(tmp_path / "folder")
