"""Training goes on while a checkpoint is written, by one process or as shards, with nothing lost or mixed up."""

from __future__ import annotations

import logging
import os
import signal
import threading
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from safetensors.torch import load_file
from support.at_batch import At
from support.models.checkpoint_parts import some_checkpoint
from support.tiny_run import Run, assert_same

from dsd_lightning.checkpoints import sharded
from dsd_lightning.checkpoints.adapter import EMA_WEIGHTS, HEADER, WEIGHTS
from dsd_lightning.checkpoints.background import Background
from dsd_lightning.checkpoints.folder_io import FolderCheckpointIO, find_last, list_steps
from dsd_lightning.files import folders

STEPS = 6


class Slow(FolderCheckpointIO):
    """Writes when it is told to."""

    def __init__(self) -> None:
        super().__init__(background=True)
        self.go_on = threading.Event()

    def _write(self, *arguments: Any) -> None:
        assert self.go_on.wait(300)
        super()._write(*arguments)


class Failing(FolderCheckpointIO):
    """Fails to write one step."""

    def __init__(self, step: int) -> None:
        super().__init__(background=True)
        self.step = step

    def _write(self, path: Path, *arguments: Any) -> None:
        if path.name == f"step_{self.step:08d}":
            raise OSError(28, "No space left on device")
        super()._write(path, *arguments)


def test_what_the_background_writes_is_what_the_foreground_writes(tmp_path: Path) -> None:
    runs = {
        name: Run(
            tmp_path / name, STEPS, every=1, keep=STEPS, written_by=FolderCheckpointIO(background=name == "back")
        ).fit()
        for name in ("back", "front")
    }
    folders = {name: list_steps(run.folder / "checkpoints") for name, run in runs.items()}
    assert list(folders["back"]) == list(folders["front"]) == list(range(1, STEPS + 1))
    for step, folder in folders["back"].items():
        for name in (WEIGHTS, EMA_WEIGHTS, HEADER):
            assert (folder / name).read_bytes() == (folders["front"][step] / name).read_bytes()
    resumed = Run(tmp_path / "resumed", STEPS).fit(folders["back"][3])
    assert_same(resumed.trained(), runs["front"].trained())


def test_training_goes_on_and_the_checkpoint_before_stays_until_the_new_one_is_whole(tmp_path: Path) -> None:
    slow, seen = Slow(), []
    slow.go_on.set()

    class Watch(L.Callback):
        def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
            step = trainer.global_step
            if step == 3:
                slow.wait()
                slow.go_on.clear()  # the next save, after step 4, waits
                self.before = find_last(tmp_path / "checkpoints")
            if step == 5:
                seen.append((self.before, find_last(tmp_path / "checkpoints")))
                slow.go_on.set()

    run = Run(tmp_path, STEPS, Watch(), every=2, keep=1, written_by=slow).fit()
    ((before, during),) = seen
    assert before is not None
    assert before.name == during.name == "step_00000002"
    assert list(list_steps(tmp_path / "checkpoints")) == [STEPS]
    straight = Run(tmp_path / "straight", STEPS).fit()
    assert_same(run.trained(), straight.trained())


def test_what_is_written_is_the_state_when_it_was_saved(tmp_path: Path) -> None:
    slow, checkpoint = Slow(), some_checkpoint(1.0)
    slow.save_checkpoint(checkpoint, tmp_path / "step_00000001")
    checkpoint["state_dict"]["weight"].fill_(9)
    checkpoint["optimizer_states"][0]["state"][0]["exp_avg"].fill_(9)
    checkpoint["optimizer_states"].append("later")
    slow.go_on.set()
    loaded = FolderCheckpointIO().load_checkpoint
    slow.wait()
    assert float(loaded(tmp_path / "step_00000001")["state_dict"]["weight"][0]) == 1.0
    (state,) = loaded(tmp_path / "step_00000001")["optimizer_states"]
    assert float(state["state"][0]["exp_avg"][0]) == 1.0


def test_a_failed_save_ends_the_run_and_removes_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.ERROR), pytest.raises(OSError, match="No space left"):
        Run(tmp_path, STEPS, every=2, keep=1, written_by=Failing(4)).fit()
    last = find_last(tmp_path / "checkpoints")
    assert last is not None
    assert 2 in list_steps(tmp_path / "checkpoints")


def test_a_stopped_run_is_on_the_disk_when_it_exits(tmp_path: Path) -> None:
    stop = At(lambda: os.kill(os.getpid(), signal.SIGTERM), batch=3)
    with pytest.raises(SystemExit) as stopped:
        Run(tmp_path, STEPS, stop, every=9, written_by=FolderCheckpointIO(background=True)).fit()
    assert stopped.value.code == 143
    assert list(list_steps(tmp_path / "checkpoints")) == [4]


def test_jobs_after_a_failed_one_are_not_done() -> None:
    background, done = Background(), []

    def fail() -> None:
        raise KeyError("first")

    background.submit(lambda: done.append(1))
    background.submit(fail)
    background.submit(lambda: done.append(2))
    with pytest.raises(KeyError, match="first"):
        background.wait()
    assert done == [1]
    assert not background.busy
    background.submit(lambda: done.append(3))
    background.wait()
    assert done == [1, 3]


# --- Sharded. What real processes write, tests/compute/test_parallelism.py compares.


def shards(index: int, count: int = 2) -> sharded.Shards:
    place: sharded.Place = ("optimizer_states", 0, "state", 7, "exp_avg")
    rows = torch.arange(6.0).view(3, 2).chunk(count)[index]
    return sharded.Shards(
        {("state_dict", "weight"): rows, place: rows + 10},
        frozenset({"state_dict", "optimizer_states"}),
        index,
        count,
        True,
    )


def test_shards_are_gathered(tmp_path: Path) -> None:
    folder = folders.begin(tmp_path / "step_00000001")
    names = {"state_dict": WEIGHTS}
    second = threading.Timer(0.2, sharded.write_own, (folder, shards(1), names))
    second.start()
    sharded.write_own(folder, shards(0), names)
    described = sharded.wait_for_all(folder, 2, timeout=20.0)
    second.join()
    folders.commit(tmp_path / "step_00000001", described)
    folder = tmp_path / "step_00000001"
    folders.verify(folder)
    assert sorted(file.name for file in folder.iterdir()) == [
        *("adapter.00000-of-00002.safetensors", "adapter.00001-of-00002.safetensors", "manifest.json"),
        *("training_state.00000-of-00002.safetensors", "training_state.00001-of-00002.safetensors"),
    ]
    weights = sharded.read(sharded.files_of(folder, WEIGHTS))
    assert torch.equal(weights["weight"], torch.arange(6.0).view(3, 2))
    checkpoint: dict[str, Any] = {"optimizer_states": [{"state": {7: {"step": 1}}}]}
    sharded.put_back(checkpoint, sharded.read(sharded.files_of(folder, sharded.SHARDED_STATE)))
    assert torch.equal(checkpoint["optimizer_states"][0]["state"][7]["exp_avg"], torch.arange(6.0).view(3, 2) + 10)
    assert load_file(folder / "adapter.00001-of-00002.safetensors")["weight"].shape == (1, 2)
    (folder / "adapter.00001-of-00002.safetensors").unlink()
    with pytest.raises(folders.DamagedError, match=r"adapter\.00001"):
        folders.verify(folder)
    with pytest.raises(folders.DamagedError, match="1 of the 2 shards"):
        sharded.files_of(folder, WEIGHTS)


def test_a_process_that_writes_nothing_is_named(tmp_path: Path) -> None:
    folder = folders.begin(tmp_path / "step_00000001")
    sharded.write_own(folder, shards(0), {})
    with pytest.raises(TimeoutError, match=r"processes \[1\] in 0.1 s"):
        sharded.wait_for_all(folder, 2, timeout=0.1)
    assert find_last(tmp_path) is None


def test_a_process_that_cannot_write_is_named_with_its_reason(tmp_path: Path) -> None:
    folder = folders.begin(tmp_path / "step_00000001")
    (folder / "training_state.00001-of-00002.safetensors").mkdir()  # in the place of its file
    sharded.write_own(folder, shards(0), {})
    with pytest.raises(Exception, match="Is a directory"):
        sharded.write_own(folder, shards(1), {})
    with pytest.raises(RuntimeError, match=r"process 1 could not write its shards: .*Is a directory"):
        sharded.wait_for_all(folder, 2, timeout=20.0)


def test_a_timeout_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match=r"timeout_minutes=0\.0 must be above 0"):
        FolderCheckpointIO(timeout_minutes=0.0)
