"""A user's own images, in the layouts that people have, become shards; what is left out is listed and counted."""

from __future__ import annotations

import shutil
import unicodedata
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from skimage import data
from support.data.packing_runs import NAMES, PHOTOGRAPHS, pixels, png

from dsd_lightning.files.listing import FolderError
from dsd_lightning.files.rows import TableError
from dsd_lightning.packing import PackingError, open_source, pack
from dsd_lightning.packing.__main__ import main
from dsd_lightning.packing.candidates import Keys
from dsd_lightning.shards import PairShards, ShardIndex


@pytest.fixture
def folders(tmp_path: Path) -> Path:
    """Make `images` (targets with captions) and `references`, complete."""
    for folder in ("images", "references"):
        (tmp_path / folder).mkdir()
    for name, photograph in zip(NAMES, PHOTOGRAPHS, strict=True):
        photograph.save(tmp_path / "images" / f"{name}.png")
        (tmp_path / "images" / f"{name}.txt").write_text(f"a photograph of: {name}\n", encoding="utf-8")
        photograph.rotate(180).save(tmp_path / "references" / f"{name}.jpg", quality=95)
    return tmp_path


def run(folder: Path, *options: str) -> int:
    source, out = str(folder / "images"), str(folder / "out")
    return main([source, out, "--task", "identity", "--reference-dir", str(folder / "references"), *options])


def test_two_folders_become_a_set(folders: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(folders) == 0
    assert "3 pairs in 1 tars" in capsys.readouterr().out
    shards = PairShards(folders / "out", task="identity", require_reference=True, verify="sha256")
    assert shards.keys == sorted(NAMES)
    for name, photograph in zip(NAMES, PHOTOGRAPHS, strict=True):
        pair = shards[shards.keys.index(name)]
        np.testing.assert_array_equal(pixels(pair.target), pixels(photograph))
        np.testing.assert_array_equal(pixels(pair.reference), pixels(Image.open(folders / f"references/{name}.jpg")))
        assert (pair.caption, pair.provenance) == (f"a photograph of: {name}", {"source": name})
    stored = (folders / "references" / "cat.jpg").read_bytes()
    assert stored in shards.paths[0].read_bytes(), "a plain file is stored as it is, not encoded again"


def test_packing_twice_gives_the_same_bytes(folders: Path) -> None:
    assert run(folders, "--workers", "1") == 0
    first = ShardIndex.read(folders / "out")
    assert run(folders, "--workers", "3") == 2, "a set that is there is only replaced with --overwrite"
    assert run(folders, "--workers", "3", "--overwrite") == 0
    assert ShardIndex.read(folders / "out") == first


def test_folders_within_folders_and_target_reference_layout(folders: Path) -> None:
    whole = folders / "whole"
    shutil.move(folders / "images", whole / "target")
    shutil.move(folders / "references", whole / "reference")
    for frame in ("target", "reference"):
        (whole / frame / "more").mkdir()
        for path in list((whole / frame).glob("cat.*")):
            shutil.copy(path, whole / frame / "more" / path.name)
    for system_file in (".DS_Store", "._cat.png", "Thumbs.db"):
        (whole / "target" / system_file).write_bytes(b"")
    (whole / "target" / "notes.pdf").write_bytes(b"")
    (whole / "target" / "cat.png").rename(whole / "target" / "cat.PNG")
    assert main([str(whole), str(folders / "out"), "--task", "identity"]) == 0
    assert PairShards(folders / "out").keys == ["astronaut", "cat", "coffee", "more_cat"]
    index = ShardIndex.read(folders / "out")
    assert index is not None
    assert index.rejections == {"other_file": 1}


def test_linked_folders_are_followed_in_natural_order_and_accents_compare_equal(folders: Path) -> None:
    other = folders / "elsewhere"
    other.mkdir()
    for name in ("2", "10", "caf\u00e9"):
        PHOTOGRAPHS[0].save(other / f"{name}.png")
        (other / f"{unicodedata.normalize('NFD', name)}.txt").write_text("\ufeffa thing\r\n", encoding="utf-8")
    for folder in ("images", "references"):
        (folders / folder / "more").symlink_to(other)
    assert run(folders) == 0
    shards = PairShards(folders / "out")
    assert shards.keys == ["astronaut", "cat", "coffee", "more_2", "more_10", "more_cafe"]
    assert shards[3].caption == "a thing"
    (other / "back").symlink_to(folders / "images")
    assert run(folders, "--overwrite") == 2


def test_tiny_huge_and_foreign_files_are_refused_by_name(
    folders: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    Image.new("RGB", (300, 4)).save(folders / "images" / "cat.png")
    (folders / "images" / "coffee.png").write_text("<html>")
    assert run(folders) == 2
    message = capsys.readouterr().err
    assert "cat.png: an image of 300 x 4 pixels is too small: both sides need 16" in message
    assert "coffee.png: cannot decode 6 bytes as an image: it is empty, cut short, or of no known format" in message
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    assert run(folders) == 2
    assert "astronaut.jpg: cannot decode" in (message := capsys.readouterr().err)
    assert "it has more than 2,000 pixels; shrink it first" in message


def test_a_folder_of_every_oddity_is_packed_with_what_is_left_out_listed(
    folders: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    orphan_everything(folders)
    images = folders / "images"
    Image.new("RGB", (1, 1)).save(images / "dot.png")
    (images / "broken.png").symlink_to(folders / "absent.png")
    for name in ("notes.pdf", "letter.docx", ".hidden.png"):
        (images / name).touch()
    for stem in ("dot", "broken"):
        (images / f"{stem}.txt").write_text("a thing")
        PHOTOGRAPHS[0].save(folders / "references" / f"{stem}.png")
    assert run(folders, "--allow-orphans") == 0
    output = capsys.readouterr().out
    for line in ("unreadable_target: dot: ", "unreadable_target: broken: ", "unreadable_caption: ", "2 other_file"):
        assert line in output
    assert "object at" not in output
    assert PairShards(folders / "out").keys == sorted(NAMES)


def test_images_without_references(folders: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(folders / "images"), str(folders / "out"), "--task", "identity"]) == 2
    assert "--reference-dir" in capsys.readouterr().err
    assert main([str(folders / "images"), str(folders / "out"), "--task", "text_to_image"]) == 0
    assert all(pair.reference is None for pair in PairShards(folders / "out", task="text_to_image"))


def orphan_everything(folders: Path) -> None:
    images, references = folders / "images", folders / "references"
    PHOTOGRAPHS[0].save(images / "alone.png")
    (images / "alone.txt").write_text("a thing")
    PHOTOGRAPHS[0].save(references / "left.png")
    for frame in (images, references):
        PHOTOGRAPHS[0].save(frame / "mute.png")
        PHOTOGRAPHS[0].save(frame / "empty.png")
        PHOTOGRAPHS[0].save(frame / "latin.png")
        PHOTOGRAPHS[0].save(frame / "torn.png")
        PHOTOGRAPHS[0].save(frame / "twice.png")
    PHOTOGRAPHS[0].save(images / "twice.bmp")
    for stem in ("torn", "twice", "word"):
        (images / f"{stem}.txt").write_text("a thing")
    (images / "empty.txt").write_text(" \n")
    (images / "latin.txt").write_bytes(b"caf\xe9")
    (references / "torn.png").write_bytes(png(PHOTOGRAPHS[0])[:2000])


REASONS = {
    "missing_reference": 1,
    "missing_target": 1,
    "missing_caption": 2,
    "unreadable_caption": 1,
    "unreadable_reference": 1,
    "ambiguous_target": 1,
    "caption_without_target": 1,
}


def test_orphans_are_refused_by_name_and_nothing_is_written(folders: Path, capsys: pytest.CaptureFixture[str]) -> None:
    orphan_everything(folders)
    assert run(folders) == 2
    message = capsys.readouterr().err
    for stem in ("alone", "left", "mute", "word"):
        assert stem in message
    assert "twice.bmp, twice.png" in message
    assert "--allow-orphans" in message
    assert not (folders / "out").exists()


def test_orphans_that_only_reading_shows_are_refused_too(folders: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = folders / "images" / "coffee.png"
    path.write_bytes(path.read_bytes()[:3000])
    assert run(folders) == 2
    assert f"unreadable_target: coffee: {path}: cannot decode" in capsys.readouterr().err
    assert not (folders / "out").exists()


def test_allowed_orphans_are_left_out_and_counted(folders: Path) -> None:
    orphan_everything(folders)
    assert run(folders, "--allow-orphans") == 0
    shards = PairShards(folders / "out")
    assert shards.keys == sorted(NAMES)
    assert shards.index is not None
    assert shards.index.rejections == REASONS


def test_a_source_of_orphans_alone_is_refused(folders: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for path in (folders / "images").glob("*.txt"):
        path.unlink()
    assert run(folders, "--allow-orphans") == 2
    assert "not one pair is left: {'missing_caption': 3}" in capsys.readouterr().err
    assert not (folders / "out").exists()


def test_resolution_shrinks_and_never_enlarges(folders: Path) -> None:
    Image.fromarray(data.coffee()).save(folders / "images" / "coffee.png")
    assert run(folders, "--resolution", "128") == 0
    shards = PairShards(folders / "out")
    assert shards.index is not None
    assert shards.index.resolution == 128
    sizes = {pair.key: pair.target.size for pair in shards}
    assert sizes == {"astronaut": (140, 120), "cat": (140, 120), "coffee": (192, 128)}


def test_images_of_other_kinds_are_converted(folders: Path) -> None:
    see_through = PHOTOGRAPHS[2].convert("RGBA")
    see_through.putalpha(0)
    see_through.save(folders / "images" / "cat.png")
    Image.fromarray(data.camera()[:90, :90].astype(np.uint16) * 257).save(folders / "references" / "cat.jpg", "PNG")
    assert run(folders) == 0
    shards = PairShards(folders / "out")
    pair = shards[shards.keys.index("cat")]
    assert (pixels(pair.target) == 255).all()
    assert pair.reference is not None
    np.testing.assert_array_equal(np.asarray(pair.reference), data.camera()[:90, :90].astype(np.uint16) * 257)


class Interrupted:
    """A source in the middle of which the user presses Ctrl-C."""

    def __init__(self, source: Any) -> None:
        self.source, self.orphans = source, source.orphans

    def __len__(self) -> int:
        return 3

    def __iter__(self) -> Any:
        yield next(iter(self.source))
        raise KeyboardInterrupt


def test_an_interrupted_packing_leaves_nothing(folders: Path) -> None:
    source = open_source(folders / "images", task="identity", reference_dir=folders / "references")
    with pytest.raises(KeyboardInterrupt):
        pack(Interrupted(source), folders / "out", task="identity")
    assert not (folders / "out").exists()
    assert run(folders) == 0


def test_sources_of_the_wrong_kind_are_refused(folders: Path) -> None:
    (folders / "void").mkdir()
    (folders / "notes.xlsx").write_text("")
    (folders / "no.parquet").write_text("no parquet")
    refused: list[tuple[str, Path, dict[str, Any]]] = [
        ("there is no", folders / "absent", {}),
        ("holds no metadata.csv", folders / "images", {"source_format": "metadata"}),
        ("holds no parquet file", folders / "images", {"source_format": "parquet"}),
        ("holds no image", folders / "void", {"reference_dir": folders / "references"}),
        ("there is no such folder", folders / "images", {"reference_dir": folders / "absent"}),
        (r"a table ends in \.csv", folders / "notes.xlsx", {}),
        ("cannot be read as parquet", folders / "no.parquet", {}),
        ("needs a folder", folders / "notes.xlsx", {"source_format": "folders"}),
    ]
    for message, source, options in refused:
        with pytest.raises((PackingError, TableError, FolderError), match=message):
            open_source(source, task="identity", **options)


def test_keys_are_clean_unique_and_repeatable() -> None:
    names = ["Café crème.v2", "a/b", "a_b", "a b", "a_b-2", "...", "猫", "x" * 400]
    alone = [Keys().make(name) for name in names]
    assert alone[:2] == ["Cafe_creme_v2", "a_b"]
    keys = Keys()
    unique = [keys.make(name) for name in names]
    assert unique[1:5] == ["a_b", "a_b-2", "a_b-3", "a_b-2-2"]
    assert unique[5:7] == ["pair", "pair-2"]
    assert len(set(unique)) == len(names)
