"""`python train.py` leaves its results, and a run that was killed or stopped goes on as if it had not been."""

from __future__ import annotations

import json
import random
import shutil
import signal
import time
from pathlib import Path

import lightning as L
import numpy as np
import pytest
import yaml
from PIL import Image
from support.commands import (
    ROOT,
    SOURCE,
    assert_equal,
    command,
    environment,
    metrics,
    run,
    tiny,
    tiny_miniature,
)
from support.finished_runs import final_state, finish
from support.processes import prepared

from dsd_lightning.checkpoints.adapter import EMA_WEIGHTS, WEIGHTS
from dsd_lightning.checkpoints.folder_io import FolderCheckpointIO, find_last, list_steps
from dsd_lightning.files.atomic import PARTIAL
from dsd_lightning.runs.folder import CONFIG
from dsd_lightning.shards import ShardWriter
from dsd_lightning.training.run import report

WITHOUT_WANDB_SETTINGS = {"WANDB_MODE": None, "WANDB_SILENT": None, "WANDB_API_KEY": None}


def assert_same_run(left: Path, right: Path) -> None:
    """Compare two finished runs bit for bit: weights, EMA weights, optimizer, position, generators, metrics."""
    assert_equal(final_state(left), final_state(right), "checkpoint")
    folders = [find_last(each / "checkpoints") for each in (left, right)]
    for name in (WEIGHTS, EMA_WEIGHTS):
        contents = [(folder / name).read_bytes() for folder in folders if folder is not None]
        assert contents[0] == contents[1], name
    rows = [[{k: v for k, v in row.items() if v} for row in metrics(each)] for each in (left, right)]
    assert rows[0] == rows[1]


# --- What a run leaves behind.


@pytest.fixture(scope="module")
def finished(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return finish(tmp_path_factory.mktemp("finished"), *tiny_miniature(tiny_base, "logger=csv"))


def test_a_run_writes_its_metrics(finished: Path) -> None:
    rows = metrics(finished)
    for name in ("train/loss", "train/loss_reference", "train/loss_target", "optimizer/lr", "optimizer/grad_norm"):
        assert sum(bool(row[name]) for row in rows) == 4, name
    for name in ("val/loss_right", "val/loss_shuffled", "val/loss_null", "val/loss_right_bin0"):
        assert sum(bool(row[name]) for row in rows) == 2, name
    summary = json.loads((finished / "summary.json").read_text())
    assert summary["steps"] == 4
    assert summary["pairs_seen"] == 16
    assert summary["seconds"] > 0
    assert summary["parameters_trained"] > 0
    for name in ("identity_accuracy", "prompt_accuracy"):
        assert 0 <= summary[name] <= 1
        assert 0 <= summary[f"{name}_before"] <= 1
    for name in ("copy_paste", "reference_psnr", "copy_paste_before", "reference_psnr_before"):
        assert isinstance(summary[name], float)


def test_a_run_writes_images_and_checkpoints(finished: Path) -> None:
    assert [path.name for path in sorted((finished / "samples").glob("step_*"))] == [
        "step_00000000.png",
        "step_00000004.png",
    ]
    with Image.open(finished / "samples" / "step_00000004.png") as sheet:
        assert min(sheet.size) > 128
    assert list(list_steps(finished / "checkpoints")) == [4]
    assert not list(finished.rglob(f"*{PARTIAL}"))
    base = {"transformer_blocks.0.attn.to_q.weight", "context_embedder.weight"}
    assert not base & set(final_state(finished)["state_dict"])


def test_the_report_says_where_everything_is(finished: Path) -> None:
    text = report(finished)
    for path in (finished, finished / "samples" / "step_00000004.png", finished / "summary.json"):
        assert str(path) in text
    assert "identity_accuracy" in text
    for part in (
        "runs plot",
        "generate.py --run",
        "evaluate.py method.maker.run=",
        "train.py trainer.max_steps=STEPS ckpt=last",
    ):
        assert part in text
    assert f"hydra.run.dir={finished}" in text


def test_the_same_command_gives_the_same_run(finished: Path, tiny_base: Path, tmp_path: Path) -> None:
    assert_same_run(finished, finish(tmp_path, *tiny_miniature(tiny_base, "logger=csv")))


def test_another_seed_gives_another_run(finished: Path, tiny_base: Path, tmp_path: Path) -> None:
    other = finish(
        tmp_path, *tiny_miniature(tiny_base, "logger=csv", "callbacks=minimal", "seed=1", "trainer.max_steps=2")
    )
    assert [row["train/loss"] for row in metrics(other)] != [row["train/loss"] for row in metrics(finished)][:2]


def test_accumulated_batches_make_one_step(tiny_base: Path, tmp_path: Path) -> None:
    overrides = [
        "optimizer=adamw",
        "trainer.accumulate_grad_batches=3",
        "trainer.max_steps=2",
        "callbacks=minimal",
        "logger=csv",
    ]
    finish(tmp_path, *tiny_miniature(tiny_base, *overrides))
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert (summary["steps"], summary["pairs_seen"]) == (2, 2 * 3 * 4)
    state = final_state(tmp_path)
    assert state["global_step"] == 2
    assert {int(each["step"]) for each in state["optimizer_states"][0]["state"].values()} == {2}
    assert state["lr_schedulers"][0]["last_epoch"] == 2


# --- Stopped and resumed, in this process.


def test_a_run_that_broke_off_goes_on_as_if_it_had_not(tiny_base: Path, tmp_path: Path) -> None:
    overrides = [
        "logger=csv",
        "trainer.max_steps=5",
        "callbacks.checkpoint.every_n_steps=1",
        "callbacks.probe.every_n_steps=2",
        "callbacks.samples.every_n_steps=2",
    ]
    straight = finish(tmp_path / "straight", *tiny_miniature(tiny_base, *overrides))
    broken = tmp_path / "broken"
    with pytest.raises(RuntimeError, match="broken off"):
        finish(
            broken,
            *tiny_miniature(tiny_base, *overrides, "+callbacks.broken={_target_:support.commands.BreakOff,batch:3}"),
        )
    # As if it had been killed later than its last checkpoint.
    earlier = tmp_path / "earlier"
    shutil.copytree(broken, earlier)
    FolderCheckpointIO().remove_checkpoint(list_steps(earlier / "checkpoints")[3])
    for resumed in (broken, earlier):
        finish(resumed, *tiny_miniature(tiny_base, *overrides, "ckpt=last"))
        assert_same_run(straight, resumed)
        summaries = [json.loads((each / "summary.json").read_text()) for each in (straight, resumed)]
        assert summaries[0].keys() == summaries[1].keys()
        assert summaries[0]["pairs_seen"] == summaries[1]["pairs_seen"]


def test_a_signal_ends_a_run_that_cannot_be_saved(
    tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """An error in its place would be a failed run, after which a sweep goes on to the next one."""

    def save(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    overrides = tiny_miniature(tiny_base, "logger=csv", "callbacks.probe=null", "trainer.max_steps=5")
    monkeypatch.setattr(L.Trainer, "save_checkpoint", save)
    with pytest.raises(SystemExit) as ended:
        finish(tmp_path / "run", *overrides, "+callbacks.signalled={_target_:support.commands.Signalled,batch:1}")
    assert ended.value.code == 128 + signal.SIGTERM
    assert "could not be saved" in caplog.text


# --- As a command.


def test_help_is_quick_and_lists_the_groups() -> None:
    ended = run("--help", module=("-X", "importtime", "train.py"))
    assert ended.returncode == 0
    architectures = [f" arch={file.stem} " for file in (ROOT / "conf" / "arch").glob("*.yaml")]
    for line in (*architectures, "python train.py arch=parallel task=identity", "ckpt=last", "max_steps:"):
        assert line in ended.stdout
    imported = {line.rpartition("|")[2].strip().partition(".")[0] for line in ended.stderr.splitlines()}
    assert "hydra" in imported
    assert not imported & {"torch", "lightning", "diffusers", "transformers", "wandb"}


def test_the_configuration_is_printed() -> None:
    ended = run("arch=text_only", "--cfg", "job")
    assert ended.returncode == 0
    config = yaml.safe_load(ended.stdout)
    assert config["arch"]["_target_"].endswith("TextOnly")
    assert config["seed"] == 0


@pytest.mark.long
def test_a_sweep_runs_each_job_in_a_folder_of_its_own_and_asks_nothing(tiny_base: Path, tmp_path: Path) -> None:
    overrides = tiny_miniature(tiny_base, "callbacks.probe=null", "trainer.max_steps=2")
    swept = run(
        "-m", "seed=0,1", f"hydra.sweep.dir={tmp_path}", *overrides, HOME=str(tmp_path), **WITHOUT_WANDB_SETTINGS
    )
    assert swept.returncode == 0, swept.stderr[-2000:]
    losses = []
    for job in ("0", "1"):
        folder = tmp_path / job
        assert json.loads((folder / "summary.json").read_text())["steps"] == 2
        assert (folder / CONFIG).is_file()
        assert len(list((folder / "wandb").glob("offline-run-*"))) == 1
        assert f"run folder    {folder}" in swept.stdout
        losses.append([row["train/loss"] for row in metrics(folder)])
    assert losses[0] != losses[1]
    assert "Enter your choice" not in swept.stdout + swept.stderr
    assert not (ROOT / "wandb").exists()


def pace(seconds: float) -> str:
    """Return an override that slows a run down, so that it can be stopped in time; it changes no metric."""
    return f"+callbacks.pace={{_target_:support.commands.Pace,seconds:{seconds}}}"


def start(run_dir: Path, overrides: list[str], ckpt: str) -> prepared.Process:
    log = (run_dir.parent / f"{run_dir.name}.log").open("ab")
    given = command(*overrides, f"hydra.run.dir={run_dir}", f"ckpt={ckpt}")
    return prepared.start(given, env=environment(PYTHONPATH=str(ROOT / "tests")), stdout=log, stderr=log)


def wait_for_step(process: prepared.Process, run_dir: Path, step: int) -> None:
    while max(list_steps(run_dir / "checkpoints"), default=0) < step:
        assert process.poll() is None, (run_dir.parent / f"{run_dir.name}.log").read_text()[-3000:]
        time.sleep(0.002)


def stop_in_a_save(process: prepared.Process, run_dir: Path) -> None:
    """Freeze the process while one of its checkpoints is being written."""
    while True:
        assert process.poll() is None, "the run ended before any of its saves was caught"
        if list((run_dir / "checkpoints").glob(f"step_*{PARTIAL}")):
            process.send_signal(signal.SIGSTOP)
            time.sleep(0.01)
            if list((run_dir / "checkpoints").glob(f"step_*{PARTIAL}")):
                return
            process.send_signal(signal.SIGCONT)


def kill_and_resume(run_dir: Path, overrides: list[str], steps: int, kills: int, seed: int) -> None:
    """Run a command that is killed at random moments, every second time within a save, until it is finished."""
    rng = random.Random(seed)
    for attempt in range(kills):
        reached = max(list_steps(run_dir / "checkpoints"), default=0)
        process = start(run_dir, overrides, "last" if attempt else "null")
        wait_for_step(process, run_dir, reached + rng.randint(1, max(1, (steps - reached) // (kills - attempt + 1))))
        if attempt % 2:
            stop_in_a_save(process, run_dir)
        else:
            time.sleep(rng.uniform(0, 0.2))
        assert process.poll() is None, "the run ended before it was killed"
        process.kill()
        assert process.wait() == -signal.SIGKILL
    finish(run_dir, *overrides, "ckpt=last")


@pytest.fixture(scope="module")
def some_shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return shards of 24 pairs that are larger than the frames, so that crops are drawn."""
    root = tmp_path_factory.mktemp("pairs") / "shards"
    rng = np.random.default_rng(0)
    with ShardWriter(root, task="identity", resolution=None) as writer:
        for number in range(24):
            reference, target = (
                Image.fromarray(rng.integers(0, 255, (5, 6, 3), dtype=np.uint8)).resize((96, 80)) for _ in range(2)
            )
            writer.write(f"pair-{number}", reference, target, f"this character, number {number}")
    return root


@pytest.mark.long
@pytest.mark.parametrize("source", ["miniature", "shards"])
def test_a_killed_run_goes_on_as_if_it_had_never_been_killed(
    source: str, tiny_base: Path, some_shards: Path, tmp_path: Path
) -> None:
    steps = 16
    overrides = [
        f"trainer.max_steps={steps}",
        "trainer.val_check_interval=3",
        "callbacks.checkpoint.every_n_steps=1",
        "callbacks.probe=null",
        "callbacks.samples.count=2",
        "callbacks.samples.every_n_steps=5",
        "logger=csv",
        "arch.lora.dropout=0.1",  # draws from torch's global generator
    ]
    if source == "miniature":
        overrides = tiny_miniature(tiny_base, *overrides)
    else:
        overrides = tiny(tiny_base, "data=shards", f"data.root={some_shards}", f"{SOURCE}.workers=2", *overrides)
    finish(tmp_path / "straight", *overrides)
    kill_and_resume(tmp_path / "killed", [*overrides, pace(0.05)], steps, kills=2, seed=0)
    assert_same_run(tmp_path / "straight", tmp_path / "killed")
    sheets = [sorted(path.name for path in (tmp_path / each / "samples").iterdir()) for each in ("straight", "killed")]
    assert sheets[0] == sheets[1]


@pytest.mark.slow
def test_ctrl_c_saves_and_exits_with_130(tiny_base: Path, tmp_path: Path) -> None:
    overrides = tiny_miniature(
        tiny_base, "trainer.max_steps=200", "callbacks=minimal", "callbacks.checkpoint.every_n_steps=2", "logger=csv"
    )
    process = start(tmp_path / "run", [*overrides, pace(0.05)], "null")
    wait_for_step(process, tmp_path / "run", 2)
    process.send_signal(signal.SIGINT)
    assert process.wait(60) == 130
    log = (tmp_path / "run.log").read_text()
    assert "Traceback" not in log
    assert "ckpt=last" in log
    stopped_at = max(list_steps(tmp_path / "run" / "checkpoints"))
    assert 2 <= stopped_at < 200
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["steps"] == stopped_at
    finish(tmp_path / "run", *overrides, f"trainer.max_steps={stopped_at + 1}", "ckpt=last")
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert (summary["steps"], summary["pairs_seen"]) == (stopped_at + 1, 4 * (stopped_at + 1))
