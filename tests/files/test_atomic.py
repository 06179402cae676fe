"""Files are written atomically: the old content or the new, whatever fails, and nothing is left beside them."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from dsd_lightning.files.atomic import (
    partial_of,
    remove_leftovers,
    replacing,
    replacing_folder,
    write_json,
    write_text,
)


def test_a_file_is_written_and_replaced_with_nothing_beside_it(tmp_path: Path) -> None:
    path = tmp_path / "below" / "a.txt"
    write_text(path, "one")
    write_text(path, "two")
    assert path.read_text() == "two"
    assert os.listdir(path.parent) == ["a.txt"]
    assert path.stat().st_mode & 0o777 == 0o666 & ~_umask()


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def test_a_failure_leaves_the_old_content(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    write_json(path, {"a": 1})
    with pytest.raises(ValueError, match="JSON"):
        write_json(path, {"a": float("nan")})

    def fail_halfway() -> None:
        with replacing(path) as temporary:
            temporary.write_text("half")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail_halfway()
    assert path.read_text() == '{\n  "a": 1\n}\n'
    assert os.listdir(tmp_path) == ["a.json"]


def test_a_folder_is_replaced_with_its_files_or_left_as_it_was(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    for content in ("one", "two"):
        with replacing_folder(folder) as temporary:
            (temporary / content).write_text(content)
    assert os.listdir(folder) == ["two"]

    def fail_halfway() -> None:
        with replacing_folder(folder) as temporary:
            (temporary / "half").touch()
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail_halfway()
    assert os.listdir(folder) == ["two"]
    assert os.listdir(tmp_path) == ["folder"]


def test_no_two_writers_share_a_name(tmp_path: Path) -> None:
    assert len({partial_of(tmp_path / "a") for _ in range(3)}) == 3


def test_leftovers_of_ended_processes_are_removed_and_others_kept(tmp_path: Path) -> None:
    ended = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, text=True)
    host = socket.gethostname()
    leftover = tmp_path / f".a.txt.{host}-{int(ended.stdout)}-0.partial"
    mine, foreign = partial_of(tmp_path / "a.txt"), tmp_path / ".a.txt.elsewhere-1-0.partial"
    for each in (leftover, mine, foreign):
        each.touch()
    remove_leftovers(tmp_path)
    assert not leftover.exists()
    assert mine.exists()
    assert foreign.exists()
