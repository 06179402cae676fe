"""A run's folder holds one record of its configuration: written once the run is accepted, and read by every command."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path

import pytest
import yaml
from support.commands import compose_train, run, tiny_miniature
from support.finished_runs import finish
from support.refusals import QUICK, refusal

from dsd_lightning.export.command import main as export
from dsd_lightning.models.restore import restore
from dsd_lightning.runs import resolvers
from dsd_lightning.runs.folder import CONFIG, NoRunError, read_config, read_overrides, write_config


@pytest.fixture(scope="module")
def trained(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a run of one step."""
    return finish(tmp_path_factory.mktemp("run"), *tiny_miniature(tiny_base, "trainer.max_steps=1", *QUICK))


def files(run: Path) -> dict[str, bytes]:
    """Return all files of a run's folder but for the log, which every command appends to, and the lock of ckpt=auto."""
    every = [file for file in run.rglob("*") if file.is_file() and file.suffix != ".log" and file.name != ".lock"]
    return {str(file.relative_to(run)): file.read_bytes() for file in every}


def test_the_record_is_read_without_resolvers(trained: Path) -> None:
    plain = yaml.safe_load((trained / CONFIG).read_text())
    assert "${" not in (trained / CONFIG).read_text()
    assert plain["arch"]["lora"]["rank"] == 2
    assert "hydra" not in plain
    assert str(trained) not in (trained / CONFIG).read_text(), "a folder that is moved stays the same run"
    assert read_config(trained).optimizer == plain["optimizer"]


def test_runs_that_start_in_the_same_second_get_folders_of_their_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Clock:
        @staticmethod
        def now() -> datetime:
            return datetime(2026, 1, 2, 10, 0, 0)

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(resolvers, "datetime", Clock)
    taken = []
    for _ in range(3):  # as many processes
        resolvers.new_run_dir.cache_clear()
        taken.append(resolvers.run_dir(None))
        assert resolvers.run_dir(None) == taken[-1], "one process, one folder"
    assert taken == [f"outputs/2026-01-02/10-00-00{number}" for number in ("", "-2", "-3")]
    monkeypatch.setenv("RANK", "1")
    resolvers.new_run_dir.cache_clear()
    assert resolvers.run_dir(None) == taken[0], "further processes of a run make no folder"
    resolvers.new_run_dir.cache_clear()


@pytest.mark.parametrize(
    "overrides",
    [["ckpt=auto", "arch.lora.rank=4"], ["ckpt=auto", "seed=5"], ["seed=5"], ["ckpt=last", "arch.lora.rank=4"]],
    ids=" ".join,
)
def test_a_refused_command_changes_nothing_in_the_runs_folder(
    trained: Path, tiny_base: Path, overrides: list[str]
) -> None:
    before = files(trained)
    refusal(trained, *tiny_miniature(tiny_base, "trainer.max_steps=1", *QUICK, *overrides))
    assert files(trained) == before


def test_a_plan_changes_nothing_in_the_runs_folder(trained: Path, tiny_base: Path, tmp_path: Path) -> None:
    before = files(trained)
    overrides = tiny_miniature(tiny_base, *QUICK, "plan=true", "arch.lora.rank=4")
    planned = run(*overrides, f"hydra.run.dir={trained}")
    assert planned.returncode == 0, planned.stderr
    assert "GiB" in planned.stdout
    assert files(trained) == before
    assert restore(trained).config.arch.lora.rank == 2
    assert export([str(trained), str(tmp_path / "out"), "--format", "official"]) == 0
    assert read_config(tmp_path / "out").arch.lora.rank == 2


def test_what_a_resumed_run_changes_is_recorded(trained: Path, tiny_base: Path) -> None:
    overrides = tiny_miniature(tiny_base, *QUICK, "trainer.max_steps=2", "ckpt=last")
    finish(trained, *overrides)
    assert read_config(trained).trainer.max_steps == 2
    assert read_overrides(trained) == []


def test_a_folder_without_a_record_is_no_run(tmp_path: Path) -> None:
    with pytest.raises(NoRunError, match=r"is no run folder: it has no config\.yaml; give"):
        read_config(tmp_path)
    (tmp_path / CONFIG).write_text("a: [")
    with pytest.raises(NoRunError, match=r"config\.yaml.* cannot be read"):
        read_config(tmp_path)


def test_ckpt_last_finds_the_newest_run_of_the_same_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    config = compose_train(tmp_path)
    for name, overrides in {
        "2026-01-01/10-00-00": ["seed=1", "~callbacks.probe"],
        "2026-01-02/10-00-00": ["~callbacks.probe", "seed=1", "ckpt=last"],
        "2026-01-03/10-00-00": ["seed=2"],
        "2026-01-04/10-00-00": ["seed=1", "~callbacks.probe"],  # stopped before its first checkpoint
    }.items():
        folder = tmp_path / "outputs" / name
        write_config(config, folder, overrides)
        if "01-04" not in name:
            (folder / "checkpoints").mkdir()
    monkeypatch.setattr("sys.argv", ["train.py", "seed=1", "ckpt=last", "~callbacks.probe", "hydra.verbose=true"])
    assert resolvers.run_dir("last") == resolvers.run_dir("auto") == "outputs/2026-01-02/10-00-00"
    earlier = {str(path) for path in Path("outputs").glob("*/*")}
    resolvers.new_run_dir.cache_clear()
    assert resolvers.run_dir(None) not in earlier
    monkeypatch.setattr("sys.argv", ["train.py", "seed=3", "ckpt=last"])
    with pytest.raises(FileNotFoundError, match="the same overrides"):
        resolvers.run_dir("last")
