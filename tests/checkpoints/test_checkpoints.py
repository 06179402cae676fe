"""A stopped, killed or failed run loses nothing, and a damaged or foreign checkpoint is refused by name."""

from __future__ import annotations

import json
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.at_batch import At
from support.tiny_run import Run, TextOnly, assert_same, make_architecture, make_module

from dsd_lightning.checkpoints.adapter import (
    EMA_WEIGHTS,
    HEADER,
    WEIGHTS,
    AdapterMismatchError,
    check_header,
)
from dsd_lightning.checkpoints.folder_io import FolderCheckpointIO, find_last, list_steps

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
    assert_same(resumed.ema.weights, whole_run.ema.weights)
    # The step under which loggers file their values.
    logged_steps = {run.trainer.fit_loop.epoch_loop._batches_that_stepped for run in (resumed, whole_run)}
    assert len(logged_steps) == 1
    assert resumed.trainer.current_epoch == whole_run.trainer.current_epoch


# --- Resumed = never stopped.


@pytest.mark.parametrize(("step", "first_validation"), [(1, 4), (4, 4), (8, 8)])
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
    metrics = [json.loads((run.folder / "summary.json").read_text()) for run in (resumed, never_stopped)]
    assert metrics[0].keys() == metrics[1].keys()
    for name in metrics[0]:
        if not name.startswith(("seconds", "throughput/")):
            assert metrics[0][name] == metrics[1][name], name


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
    saved: list[int] = []
    run = Run(tmp_path, 8, At(lambda: saved.extend(list_steps(tmp_path / "checkpoints")), validation=8))
    run.fit()
    assert 8 not in saved
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
