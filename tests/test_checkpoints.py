"""Does a stopped, killed or failed run lose nothing, and is a damaged or foreign checkpoint refused by name?"""

from __future__ import annotations

import json
import logging
import os
import shutil
import signal
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from tiny_run import Run, TextOnly, assert_same, make_architecture, make_module

from dsd_lightning.architectures.base import Architecture
from dsd_lightning.architectures.reference_tokens import ReferenceTokens
from dsd_lightning.checkpoints import whole
from dsd_lightning.checkpoints.adapter import (
    EMA_WEIGHTS,
    HEADER,
    WEIGHTS,
    AdapterMismatchError,
    check_header,
    header_of,
    load_adapter,
    save_adapter,
)
from dsd_lightning.checkpoints.folder_io import TRAINING_STATE, FolderCheckpointIO, find_last, list_steps
from dsd_lightning.checkpoints.whole import MANIFEST, DamagedError

STEPS = 9


@pytest.fixture(scope="module")
def never_stopped(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Train without interruption, keeping the checkpoint of every step: what a kill after that step would leave."""
    return Run(tmp_path_factory.mktemp("whole"), STEPS, every=1, keep=STEPS).fit()


def assert_continues(resumed: Run, whole_run: Run, step: int, first_validation: int) -> None:
    assert resumed.recorder.losses == {k: v for k, v in whole_run.recorder.losses.items() if k >= step}
    expected = {k: v for k, v in whole_run.recorder.validations.items() if k >= first_validation}
    assert resumed.recorder.validations == expected
    assert_same(resumed.trained(), whole_run.trained())
    assert_same(resumed.ema.averages, whole_run.ema.averages)
    # The step under which loggers file their values.
    logged_steps = {run.trainer.fit_loop.epoch_loop._batches_that_stepped for run in (resumed, whole_run)}
    assert len(logged_steps) == 1
    assert resumed.trainer.current_epoch == whole_run.trainer.current_epoch


# --- Resumed = never stopped.


@pytest.mark.parametrize(("step", "first_validation"), [(1, 4), (3, 4), (4, 4), (5, 8), (8, 8)])
def test_killed_and_resumed_equals_never_stopped(
    never_stopped: Run, tmp_path: Path, step: int, first_validation: int
) -> None:
    # Step 4's checkpoint was saved before that step's validation: resuming makes up for it.
    killed = tmp_path / "checkpoints" / f"step_{step:08d}"
    shutil.copytree(list_steps(never_stopped.folder / "checkpoints")[step], killed)
    resumed = Run(tmp_path, STEPS).fit(find_last(tmp_path / "checkpoints"))
    assert_continues(resumed, never_stopped, step, first_validation)
    last = {run: find_last(run.folder / "checkpoints") for run in (resumed, never_stopped)}
    for name in (WEIGHTS, EMA_WEIGHTS, HEADER):
        assert (last[resumed] / name).read_bytes() == (last[never_stopped] / name).read_bytes()
    figures = [json.loads((run.folder / "summary.json").read_text()) for run in (resumed, never_stopped)]
    assert figures[0].keys() == figures[1].keys()
    for name in figures[0]:
        if not name.startswith(("seconds", "throughput/")):
            assert figures[0][name] == figures[1][name], name


def test_resumed_equals_never_stopped_with_accumulation(tmp_path: Path) -> None:
    straight = Run(tmp_path / "straight", 4, every=1, keep=4, accumulate=2).fit()
    for step in (1, 2):
        resumed = Run(tmp_path / f"from_{step}", 4, accumulate=2).fit(
            list_steps(tmp_path / "straight" / "checkpoints")[step]
        )
        assert_continues(resumed, straight, 2 * step, step if step == 2 else 2)
        assert resumed.ema.updates == 4


def test_a_finished_run_goes_on_with_more_steps(never_stopped: Run, tmp_path: Path) -> None:
    Run(tmp_path, 4).fit()
    longer = Run(tmp_path, STEPS).fit(find_last(tmp_path / "checkpoints"))
    assert_continues(longer, never_stopped, 4, 8)


class At(L.Callback):
    """Calls something at the start of a batch, counted from 0, or of the validation after a step."""

    def __init__(self, act: Callable[[], Any], batch: int | None = None, validation: int | None = None) -> None:
        self.act, self.batch, self.validation = act, batch, validation

    def on_train_batch_start(self, trainer: L.Trainer, *_: Any) -> None:
        if trainer.fit_loop.epoch_loop.total_batch_idx == self.batch:
            self.act()

    def on_validation_batch_start(self, trainer: L.Trainer, *_: Any) -> None:
        if trainer.global_step == self.validation:
            self.act()


def fail() -> None:
    raise ZeroDivisionError("as if something broke")


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_signal_saves_at_the_end_of_the_step_and_exits(
    never_stopped: Run, tmp_path: Path, number: int, code: int
) -> None:
    before = signal.getsignal(number)
    with pytest.raises(SystemExit) as stopped:
        Run(tmp_path, STEPS, At(lambda: os.kill(os.getpid(), number), batch=4)).fit()
    assert stopped.value.code == code
    assert signal.getsignal(number) == before
    assert list(list_steps(tmp_path / "checkpoints")) == [3, 5]
    assert json.loads((tmp_path / "summary.json").read_text())["steps"] == 5
    assert_continues(Run(tmp_path, STEPS).fit(find_last(tmp_path / "checkpoints")), never_stopped, 5, 8)


@pytest.mark.parametrize("act", [lambda: os.kill(os.getpid(), signal.SIGTERM), fail], ids=["signal", "error"])
def test_stopped_in_validation_validates_again(never_stopped: Run, tmp_path: Path, act: Callable[[], Any]) -> None:
    with pytest.raises((SystemExit, ZeroDivisionError)):
        Run(tmp_path, STEPS, At(act, validation=4)).fit()
    assert list(list_steps(tmp_path / "checkpoints")) == [3, 4]
    assert_continues(Run(tmp_path, STEPS).fit(find_last(tmp_path / "checkpoints")), never_stopped, 4, 4)


def test_error_between_steps_loses_no_step(never_stopped: Run, tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError):
        Run(tmp_path, STEPS, At(fail, batch=5)).fit()
    assert list(list_steps(tmp_path / "checkpoints")) == [3, 5]
    assert_continues(Run(tmp_path, STEPS).fit(find_last(tmp_path / "checkpoints")), never_stopped, 5, 8)


def test_error_within_a_step_saves_nothing_half_done(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = Run(tmp_path, STEPS)
    original = run.module.lr_scheduler_step

    def break_in_step_five(*arguments: Any) -> None:
        fail() if run.trainer.global_step == 5 else original(*arguments)

    monkeypatch.setattr(run.module, "lr_scheduler_step", break_in_step_five)
    with pytest.raises(ZeroDivisionError):
        run.fit()
    assert list(list_steps(tmp_path / "checkpoints")) == [3]


def test_last_step_is_saved_after_its_validation(tmp_path: Path) -> None:
    seen: list[int] = []
    run = Run(tmp_path, 8, At(lambda: seen.extend(list_steps(tmp_path / "checkpoints")), validation=8))
    run.fit()
    assert 8 not in seen
    assert list(list_steps(tmp_path / "checkpoints")) == [6, 8]


# --- Bad folders are refused.


def test_a_new_run_refuses_another_runs_checkpoints(never_stopped: Run, tmp_path: Path) -> None:
    shutil.copytree(list_steps(never_stopped.folder / "checkpoints")[5], tmp_path / "checkpoints" / "step_00000005")
    with pytest.raises(FileExistsError, match=r"step_00000005.*ckpt=last"):
        Run(tmp_path, STEPS).fit()


def test_resuming_an_earlier_step_sets_the_later_ones_aside(never_stopped: Run, tmp_path: Path) -> None:
    for step in (3, 5):
        folder = list_steps(never_stopped.folder / "checkpoints")[step]
        shutil.copytree(folder, tmp_path / "checkpoints" / folder.name)
    Run(tmp_path, 4, every=100).fit(tmp_path / "checkpoints" / "step_00000003")
    assert {folder.name for folder in (tmp_path / "checkpoints").iterdir()} == {
        "step_00000003",
        "step_00000004",
        "step_00000005.superseded",
    }


def test_a_folder_that_cannot_be_written_is_refused_at_once(tmp_path: Path) -> None:
    (tmp_path / "checkpoints").write_text("a file where the folder should be")
    run = Run(tmp_path, STEPS)
    with pytest.raises(PermissionError, match=r"checkpoints.*hydra\.run\.dir"):
        run.fit()
    assert not run.recorder.losses


def test_resuming_from_no_checkpoint_says_what_one_is(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="ckpt=last"):
        Run(tmp_path, STEPS).fit(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"kind": TextOnly}, "arch=parallel, this run has text_only: set arch=parallel"),
        ({"rank": 4}, r"arch\.lora\.rank=2, this run has 4: set arch\.lora\.rank=2"),
        ({"alpha": 16}, r"arch\.lora\.alpha=2, this run has 16: set arch\.lora\.alpha=2"),
        ({"layers": 2}, "num_layers=1, this run has 2: it belongs to another base"),
    ],
    ids=["architecture", "rank", "alpha", "base"],
)
def test_checkpoint_of_another_model_is_refused(never_stopped: Run, settings: dict[str, Any], message: str) -> None:
    other = make_module(make_architecture(**settings))
    checkpoint = FolderCheckpointIO().load_checkpoint(list_steps(never_stopped.folder / "checkpoints")[STEPS])
    with pytest.raises(AdapterMismatchError, match=message):
        other.on_load_checkpoint(checkpoint)


def test_checkpoint_without_a_header_is_refused() -> None:
    with pytest.raises(AdapterMismatchError, match=HEADER):
        check_header({}, make_architecture())


# --- The folder itself.


def some_checkpoint(value: float) -> dict[str, Any]:
    return {
        "state_dict": {"weight": torch.full((3,), value)},
        "ema": {"weight": torch.full((3,), value / 2)},
        "adapter": {"architecture": "parallel"},
        "optimizer_states": [{"state": {0: {"exp_avg": torch.full((3,), value)}}}],
    }


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


def save_and_die(path: Path, calls: int) -> bool:
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

        os.fsync, os.rename = dying(os.fsync), dying(os.rename)
        try:
            FolderCheckpointIO().save_checkpoint(some_checkpoint(2.0), path)
        finally:
            os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9


@pytest.mark.parametrize("again", [False, True], ids=["new", "replacing"])
def test_death_at_any_moment_of_a_save_leaves_a_whole_checkpoint(tmp_path: Path, again: bool) -> None:
    kept = tmp_path / "step_00000001"
    path = kept if again else tmp_path / "step_00000002"
    found, calls = set(), 0
    FolderCheckpointIO().save_checkpoint(some_checkpoint(1.0), kept)
    while save_and_die(path, calls):
        calls += 1
        last = find_last(tmp_path)
        assert last is not None
        value = float(FolderCheckpointIO().load_checkpoint(last)["state_dict"]["weight"][0])
        assert value in ((1.0, 2.0) if last.name == path.name else (1.0,))
        found.add(value)
    assert calls >= 7  # four files, the manifest, the folder, the rename
    assert found == {1.0, 2.0}  # it did die before and after the commit
    last = find_last(tmp_path)
    assert last == path
    assert float(FolderCheckpointIO().load_checkpoint(path)["state_dict"]["weight"][0]) == 2.0


@pytest.mark.parametrize("name", [WEIGHTS, EMA_WEIGHTS, HEADER, TRAINING_STATE, MANIFEST])
@pytest.mark.parametrize("damage", ["flip", "cut", "remove"])
def test_damage_is_named_and_passed_over(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, name: str, damage: str
) -> None:
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


# --- Trained adapters.


def test_adapter_round_trip_and_refusals(tmp_path: Path) -> None:
    source, target = make_architecture(), make_architecture()
    with torch.no_grad():
        for _, parameter in source.trainable():
            parameter.normal_(generator=torch.Generator().manual_seed(1))
    (tmp_path / "README.md").write_text("a model card")
    save_adapter(tmp_path, source)
    header = load_adapter(tmp_path, target)
    assert_same(dict(target.trainable()), dict(source.trainable()))
    assert header.items() >= json.loads(json.dumps(header_of(source))).items()
    assert {file.name for file in tmp_path.iterdir()} == {"README.md", WEIGHTS, HEADER}
    with pytest.raises(AdapterMismatchError, match=str(tmp_path)):
        load_adapter(tmp_path, make_architecture(rank=4))
    content = bytearray((tmp_path / WEIGHTS).read_bytes())
    content[-1] ^= 1
    (tmp_path / WEIGHTS).write_bytes(content)
    with pytest.raises(DamagedError, match=WEIGHTS):
        load_adapter(tmp_path, target)
    with pytest.raises(FileNotFoundError, match=HEADER):
        load_adapter(tmp_path / "nowhere", target)


def test_adapter_of_a_run_gives_averages_or_trained_weights(never_stopped: Run) -> None:
    folder = find_last(never_stopped.folder / "checkpoints")
    assert folder is not None
    architecture = make_architecture()
    load_adapter(folder, architecture)
    assert_same(dict(architecture.trainable()), never_stopped.ema.averages)
    load_adapter(folder, architecture, ema=False)
    assert_same(dict(architecture.trainable()), never_stopped.trained())


def test_lora_pattern_may_be_written_otherwise() -> None:
    header = header_of(make_architecture())
    header["lora"] = header["lora"] | {"targets": "another pattern for the same layers"}
    check_header(header, make_architecture())
    with pytest.raises(AdapterMismatchError, match=r"arch\.lora\.targets=another"):
        check_header(header | {"parameters": 1}, make_architecture())


def test_settings_of_the_architecture_itself_must_be_the_same() -> None:
    def built(**settings: Any) -> Architecture:
        return make_architecture(partial(ReferenceTokens, **settings))

    header = json.loads(json.dumps(header_of(built(separate_pass=True, reference_timestep=0.25))))
    check_header(header, built(separate_pass=True, reference_timestep=0.25))
    for other, message in {
        (False, 0.25): r"arch\.separate_pass=true, this run has false: set arch\.separate_pass=true",
        (True, 0.0): r"arch\.reference_timestep=0\.25, this run has 0",
    }.items():
        with pytest.raises(AdapterMismatchError, match=message):
            check_header(header, built(separate_pass=other[0], reference_timestep=other[1]))
    # Checkpoints of before there were any.
    before = {key: value for key, value in header_of(make_architecture()).items() if key != "settings"}
    check_header(before, make_architecture())


def test_a_failed_block_leaves_the_folder_as_it_was(tmp_path: Path) -> None:
    with whole.whole_folder(tmp_path / "folder") as folder:
        whole.write_json(folder / "a.json", {"a": 1})
    with pytest.raises(ZeroDivisionError), whole.whole_folder(tmp_path / "folder") as folder:
        fail()
    whole.verify(tmp_path / "folder")
