"""Folders are listed in natural order, without system files, through links, and cycles are refused."""

from __future__ import annotations

import unicodedata
from pathlib import Path

import pytest

from dsd_lightning.files.listing import FolderError, list_files, natural_key


def test_files_are_listed_as_people_count(tmp_path: Path) -> None:
    for name in ("10.png", "2.PNG", "1.png", "._1.png", ".DS_Store", "Thumbs.db", "notes.txt"):
        (tmp_path / name).touch()
    (tmp_path / "__MACOSX").mkdir()
    (tmp_path / "__MACOSX" / "1.png").touch()
    assert [file.name for file in list_files(tmp_path, [".png"])] == ["1.png", "2.PNG", "10.png"]


def test_linked_folders_are_followed_and_cycles_refused(tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "a.png").touch()
    (tmp_path / "root").mkdir()
    (tmp_path / "root" / "more").symlink_to(tmp_path / "other")
    assert [file.relative_to(tmp_path).as_posix() for file in list_files(tmp_path / "root")] == ["root/more/a.png"]
    assert list_files(tmp_path / "root", recursive=False) == []
    (tmp_path / "other" / "back").symlink_to(tmp_path / "root")
    with pytest.raises(FolderError, match="a folder above it"):
        list_files(tmp_path / "root")


def test_names_are_compared_after_normalisation() -> None:
    assert natural_key(unicodedata.normalize("NFD", "é1.png")) == natural_key(unicodedata.normalize("NFC", "é1.png"))


def test_a_missing_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FolderError, match="no such folder"):
        list_files(tmp_path / "none")
