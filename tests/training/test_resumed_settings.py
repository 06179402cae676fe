"""A resumed run names what was changed and applies it, or refuses what its checkpoint does not fit."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
from support.commands import compose_train, metrics, tiny_miniature
from support.refusals import QUICK, refusal

from dsd_lightning.runs.folder import read_config
from dsd_lightning.training.run import train

CONSTANT = ("schedule=constant", "schedule.num_warmup_steps=0", "optimizer=adamw", "optimizer.lr=0.004")


@pytest.fixture(scope="module")
def stopped(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a run of two steps at a constant learning rate."""
    folder = tmp_path_factory.mktemp("stopped")
    train(compose_train(folder, *short(tiny_base, "trainer.max_steps=2")), folder)
    return folder


def short(base: Path, *overrides: str) -> list[str]:
    first = [each for each in CONSTANT if each.partition("=")[0] not in {o.partition("=")[0] for o in overrides}]
    # A group first: what is set within it would be lost otherwise.
    return tiny_miniature(base, *sorted(first, key=lambda each: "." in each), *QUICK, *overrides)


def checkpoint_of(run: Path) -> str:
    return f"ckpt={run / 'checkpoints' / 'step_00000002'}"


def test_changed_settings_are_named_and_apply(
    tiny_base: Path, tmp_path: Path, stopped: Path, caplog: pytest.LogCaptureFixture
) -> None:
    changed = [
        "optimizer.lr=0.0005",
        "optimizer.weight_decay=0.1",
        "trainer.max_steps=4",
        "data.datamodule.batch_size=2",
    ]
    with caplog.at_level(logging.INFO):
        train(compose_train(tmp_path, *short(tiny_base, *changed, checkpoint_of(stopped))), tmp_path)
    for sentence in (
        "optimizer.lr was 0.004 and is 0.0005",
        "optimizer.weight_decay was 0.0 and is 0.1",
        "trainer.max_steps was 2 and is 4",
        "data.datamodule.batch_size was 4 and is 2",
    ):
        assert sentence in caplog.text
    rows = metrics(tmp_path)
    assert [float(row["optimizer/lr"]) for row in rows if row.get("optimizer/lr")] == pytest.approx([0.0005] * 2)
    assert len(rows) == 2
    assert read_config(tmp_path).optimizer.lr == 0.0005


def test_unchanged_settings_are_not_spoken_of(
    tiny_base: Path, tmp_path: Path, stopped: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO):
        train(compose_train(tmp_path, *short(tiny_base, "trainer.max_steps=3", checkpoint_of(stopped))), tmp_path)
    (said,) = [record.getMessage() for record in caplog.records if "other settings" in record.getMessage()]
    assert said.splitlines()[1:] == ["  trainer.max_steps was 2 and is 3"]
    assert "parameter group" not in caplog.text


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("optimizer=muon", "optimizer._target_ was torch.optim.AdamW and is dsd_lightning.training.muon.MuonWithAdamW"),
        ("trainer.accumulate_grad_batches=2", "trainer.accumulate_grad_batches was 1 and is 2"),
    ],
)
def test_what_the_state_does_not_fit_is_refused_and_the_record_stays(
    tiny_base: Path, tmp_path: Path, stopped: Path, override: str, sentence: str
) -> None:
    message = refusal(tmp_path, *short(tiny_base, override, "trainer.max_steps=4", checkpoint_of(stopped)))
    assert sentence in message
    assert "init_from=CHECKPOINT" in message
    assert not (tmp_path / "config.yaml").exists()


def test_another_optimizer_is_refused_also_where_the_checkpoint_has_no_record(
    tiny_base: Path, tmp_path: Path, stopped: Path
) -> None:
    alone = tmp_path / "elsewhere" / "checkpoints"
    alone.mkdir(parents=True)
    (alone / "step_00000002").symlink_to(stopped / "checkpoints" / "step_00000002")
    run = tmp_path / "run"
    message = refusal(
        run, *short(tiny_base, "optimizer=muon", "trainer.max_steps=4", f"ckpt={alone / 'step_00000002'}")
    )
    assert "the state of another optimizer" in message
    assert not (run / "config.yaml").exists()
