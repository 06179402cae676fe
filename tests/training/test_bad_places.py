"""Checkpoints, folders and services that cannot be used are refused at the start, with value and remedy."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from support.commands import SOURCE, compose_train, run, tiny_miniature
from support.refusals import QUICK, refusal

from dsd_lightning.cli.errors import FULL_ERROR, INTERRUPTED, REFUSED, run_command
from dsd_lightning.training.run import train


@pytest.fixture(scope="module")
def checkpoint(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the checkpoint of a short run of arch=parallel with rank 2."""
    folder = tmp_path_factory.mktemp("finished")
    train(compose_train(folder, *tiny_miniature(tiny_base, "trainer.max_steps=1", *QUICK)), folder)
    return folder / "checkpoints" / "step_00000001"


@pytest.mark.parametrize(
    ("key", "override", "fragments"),
    [
        ("ckpt", "arch=text_only", ("arch=parallel", "text_only")),
        ("init_from", "arch.lora.rank=4", ("arch.lora.rank=2", "4")),
        ("ckpt", "arch.lora=null", ("arch.lora",)),
        ("init_from", "base=tiny_untrained", ("transformer num_layers=1", "2", "another base")),
    ],
)
def test_a_checkpoint_of_another_architecture_rank_or_base_is_refused_before_the_data_is_encoded(
    tiny_base: Path, tmp_path: Path, checkpoint: Path, key: str, override: str, fragments: tuple[str, ...]
) -> None:
    # So many pairs would take hours to encode.
    overrides = [f"{key}={checkpoint}", f"{SOURCE}.pairs=10000000", *QUICK]
    lora = ["arch.lora.rank=2"] if "lora" not in override else []
    message = refusal(tmp_path, f"base.model.path={tiny_base}", "trainer.accelerator=cpu", *lora, override, *overrides)
    for fragment in fragments:
        assert fragment in message
    assert "train from the start" in message or "use the" in message


def test_ckpt_last_without_an_earlier_run_is_refused(tiny_base: Path, tmp_path: Path) -> None:
    message = refusal(tmp_path, *tiny_miniature(tiny_base, "ckpt=last", *QUICK))
    assert "ckpt=last" in message
    assert str(tmp_path / "checkpoints") in message
    assert "ckpt=null" in message


def test_ckpt_last_of_a_command_that_never_ran_is_refused() -> None:
    refused = run("ckpt=last", "seed=987654321")
    assert refused.returncode == REFUSED
    assert "was started with the same overrides" in refused.stderr
    assert "hydra.run.dir=FOLDER" in refused.stderr
    assert "Traceback" not in refused.stderr


def test_a_folder_that_is_no_checkpoint_is_refused(tiny_base: Path, tmp_path: Path) -> None:
    assert "no such checkpoint" in refusal(tmp_path, *tiny_miniature(tiny_base, f"ckpt={tmp_path}/nowhere", *QUICK))
    assert "adapter.json" in refusal(tmp_path, *tiny_miniature(tiny_base, f"ckpt={tmp_path}", *QUICK))
    assert "adapter.json" in refusal(tmp_path, *tiny_miniature(tiny_base, f"init_from={tmp_path}", *QUICK))


def test_a_damaged_checkpoint_is_refused(tiny_base: Path, tmp_path: Path, checkpoint: Path) -> None:
    damaged = tmp_path / "step_00000001"
    shutil.copytree(checkpoint, damaged)
    state = damaged / "training_state.pt"
    state.write_bytes(state.read_bytes()[:-1])
    assert str(state) in refusal(tmp_path, *tiny_miniature(tiny_base, f"ckpt={damaged}", *QUICK))


# --- Places that cannot be written. (A file stands where a folder should be: root may write anywhere else.)


def test_a_run_folder_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    refused = run(f"hydra.run.dir={tmp_path / 'file' / 'run'}")
    assert refused.returncode == REFUSED
    assert str(tmp_path / "file") in refused.stderr
    assert "hydra.run.dir=" in refused.stderr
    assert "Traceback" not in refused.stderr


def test_metrics_that_cannot_be_written_are_refused(tiny_base: Path, tmp_path: Path) -> None:
    (tmp_path / "metrics.csv").mkdir()
    message = refusal(tmp_path, *tiny_miniature(tiny_base, *QUICK))
    assert "metrics.csv" in message


# --- W&B.


@pytest.mark.slow
def test_an_unavailable_wandb_is_refused_with_the_way_around_it(tiny_base: Path, tmp_path: Path) -> None:
    # In a process of its own: W&B remembers its server for the life of a process, and would refuse later tests too.
    overrides = ["logger=default", "logger.wandb.settings.init_timeout=2", "callbacks=minimal"]
    refused = run(
        *tiny_miniature(tiny_base, *overrides, f"hydra.run.dir={tmp_path / 'run'}"),
        WANDB_API_KEY="0" * 40,
        WANDB_BASE_URL="http://127.0.0.1:9",  # nobody listens there
        WANDB_MODE=None,
    )
    assert refused.returncode == REFUSED, refused.stderr
    for fragment in ("W&B is not available", "logger.wandb.offline=true", "logger=csv"):
        assert fragment in refused.stderr


# --- How errors are reported.


def test_a_refusal_ends_with_its_message_and_exit_code_2(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(FULL_ERROR, "0")
    with pytest.raises(SystemExit) as ended:
        run_command(train_wrong_rank)
    assert ended.value.code == REFUSED
    message = capsys.readouterr().err
    assert "error: arch.lora.rank=0" in message
    assert "Traceback" not in message


def train_wrong_rank() -> None:
    from dsd_lightning.flux.lora import Lora

    Lora(rank=0, targets="x")


def test_the_traceback_is_shown_on_request(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(FULL_ERROR, "1")
    with pytest.raises(ValueError, match=r"arch\.lora\.rank=0"):
        run_command(train_wrong_rank)


def test_a_programming_error_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(FULL_ERROR, "0")
    for fail in (
        lambda: torch.zeros(2).reshape(3),
        lambda: torch.empty(0)[1],
        lambda: int("x"),
        lambda: Path("nowhere").read_text(),
    ):
        with pytest.raises((RuntimeError, IndexError, ValueError, OSError)):
            run_command(fail)  # type: ignore[arg-type]


def test_ctrl_c_ends_with_130(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(FULL_ERROR, "0")

    def stop() -> None:
        raise KeyboardInterrupt

    def stop_as_lightning_does() -> None:
        try:
            stop()
        except KeyboardInterrupt:
            raise SystemExit(1)  # noqa: B904

    for main in (stop, stop_as_lightning_does):
        with pytest.raises(SystemExit) as ended:
            run_command(main)
        assert ended.value.code == INTERRUPTED
    assert "Traceback" not in capsys.readouterr().err
