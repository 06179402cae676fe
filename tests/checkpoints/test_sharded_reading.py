"""Each process reads its own part of a checkpoint, the first alone checks its files, and all refuse a damaged one alike."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from support.models.two_readers import DAMAGED, SHAPES, checkpoint, parameter, two_processes

from dsd_lightning.checkpoints.folder_io import TRAINING_STATE, FolderCheckpointIO
from dsd_lightning.files import folders


@pytest.fixture(scope="module")
def read(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[dict[str, Any]]]:
    """Write a checkpoint of one process and a damaged one, and read them, and one of two, in two processes."""
    folder = tmp_path_factory.mktemp("checkpoints")
    whole = checkpoint({name: parameter(name) for name in SHAPES})
    for name in ("step_00000001", DAMAGED):
        FolderCheckpointIO().save_checkpoint(whole, folder / name)
    file = folder / DAMAGED / TRAINING_STATE
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    return folder, two_processes(folder)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["step_00000001", "step_00000002"])
def test_the_parts_that_two_processes_read_are_the_checkpoint(
    name: str, read: tuple[Path, list[dict[str, Any]]]
) -> None:
    folder, results = read
    for result in results:
        for key in SHAPES:
            assert result[name]["state_dict"][key] == parameter(key).tolist()
            assert result[name]["ema"][key] == (parameter(key) + 0.5).tolist()
        assert list(result[name]["moments"].values()) == [(parameter(key) * 2).tolist() for key in SHAPES]
    # A checkpoint of one process keeps its moments in a file that is mapped, and is sharded when the optimizer takes it.
    assert {each for result in results for each in result[name]["sharded_moments"]} == {name == "step_00000002"}
    of_all = sum(torch.Size(shape).numel() for shape in SHAPES.values()) * 4
    parts = 3 if name == "step_00000002" else 2
    first, second = (result[name]["bytes"] for result in results)
    assert first + second == parts * of_all
    assert first < 0.7 * parts * of_all
    written = sorted(file.name for file in (folder / name).iterdir() if file.name != folders.MANIFEST)
    assert results[0][name]["hashed"] == written, "each file once"
    assert results[1][name]["hashed"] == []


@pytest.mark.slow
def test_all_processes_refuse_a_damaged_checkpoint_with_one_message(read: tuple[Path, list[dict[str, Any]]]) -> None:
    _, results = read
    assert re.search(rf"{DAMAGED}/{TRAINING_STATE} is damaged: its sha256", results[0]["error"])
    assert results[1]["error"] == results[0]["error"]


def test_a_start_reads_each_file_once_to_check_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from dsd_lightning.checkpoints.folder_io import find_last

    FolderCheckpointIO().save_checkpoint(checkpoint({"factor": parameter("factor")}), tmp_path / "step_00000001")
    hashed: list[str] = []
    plain = folders._sha256
    monkeypatch.setattr(folders, "_sha256", lambda file: hashed.append(file.name) or plain(file))
    last = find_last(tmp_path)
    assert last is not None
    FolderCheckpointIO().load_checkpoint(last)
    assert sorted(hashed) == sorted(file.name for file in last.iterdir() if file.name != folders.MANIFEST)
    assert find_last(tmp_path, contents=False) == last
    file = last / TRAINING_STATE
    file.write_bytes(file.read_bytes()[:-1] + b"x")
    with pytest.raises(folders.DamagedError, match="sha256"):
        FolderCheckpointIO().load_checkpoint(last)
