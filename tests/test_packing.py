"""Do a user's own pictures, in the layouts that people have, become shards, and is nothing lost in silence?"""

from __future__ import annotations

import csv
import importlib
import io
import json
import shutil
import types
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from skimage import data

from dsd_lightning.packing import PackingError, open_source, pack
from dsd_lightning.packing.__main__ import main
from dsd_lightning.packing.candidates import Keys
from dsd_lightning.packing.subjects200k import split_composite
from dsd_lightning.shards import PairShards, ShardIndex

PHOTOGRAPHS = [Image.fromarray(read()[:120, :140]) for read in (data.astronaut, data.coffee, data.chelsea)]
NAMES = ["astronaut", "coffee", "cat"]


def png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture
def folders(tmp_path: Path) -> Path:
    """Make `pictures` (targets with captions) and `references`, complete."""
    for folder in ("pictures", "references"):
        (tmp_path / folder).mkdir()
    for name, photograph in zip(NAMES, PHOTOGRAPHS, strict=True):
        photograph.save(tmp_path / "pictures" / f"{name}.png")
        (tmp_path / "pictures" / f"{name}.txt").write_text(f"a photograph of: {name}\n", encoding="utf-8")
        photograph.rotate(180).save(tmp_path / "references" / f"{name}.jpg", quality=95)
    return tmp_path


def run(folder: Path, *options: str) -> int:
    source, out = str(folder / "pictures"), str(folder / "out")
    return main([source, out, "--task", "identity", "--reference-dir", str(folder / "references"), *options])


def pixels(image: Image.Image | None) -> np.ndarray:
    return np.asarray(image)


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
    assert stored in shards.paths[0].read_bytes(), "a plain file is stored as it is, not encoded anew"


def test_packing_twice_gives_the_same_bytes(folders: Path) -> None:
    assert run(folders, "--workers", "1") == 0
    first = ShardIndex.read(folders / "out")
    assert run(folders, "--workers", "3") == 2, "a set that is there is not replaced without being told to"
    assert run(folders, "--workers", "3", "--overwrite") == 0
    assert ShardIndex.read(folders / "out") == first


def test_folders_within_folders_and_target_reference_layout(folders: Path) -> None:
    whole = folders / "whole"
    shutil.move(folders / "pictures", whole / "target")
    shutil.move(folders / "references", whole / "reference")
    for frame in ("target", "reference"):
        (whole / frame / "more").mkdir()
        for path in list((whole / frame).glob("cat.*")):
            shutil.copy(path, whole / frame / "more" / path.name)
    (whole / "target" / ".DS_Store").write_bytes(b"")
    (whole / "target" / "._cat.png").write_bytes(b"")
    assert main([str(whole), str(folders / "out"), "--task", "identity"]) == 0
    assert PairShards(folders / "out").keys == ["astronaut", "cat", "coffee", "more_cat"]


def test_pictures_without_references(folders: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(folders / "pictures"), str(folders / "out"), "--task", "identity"]) == 2
    assert "--reference-dir" in capsys.readouterr().err
    assert main([str(folders / "pictures"), str(folders / "out"), "--task", "text_only"]) == 0
    assert all(pair.reference is None for pair in PairShards(folders / "out", task="text_only"))


def orphan_everything(folders: Path) -> None:
    pictures, references = folders / "pictures", folders / "references"
    PHOTOGRAPHS[0].save(pictures / "alone.png")
    (pictures / "alone.txt").write_text("a thing")
    PHOTOGRAPHS[0].save(references / "left.png")
    for frame in (pictures, references):
        PHOTOGRAPHS[0].save(frame / "mute.png")
        PHOTOGRAPHS[0].save(frame / "empty.png")
        PHOTOGRAPHS[0].save(frame / "latin.png")
        PHOTOGRAPHS[0].save(frame / "torn.png")
        PHOTOGRAPHS[0].save(frame / "twice.png")
    PHOTOGRAPHS[0].save(pictures / "twice.bmp")
    for stem in ("torn", "twice", "word"):
        (pictures / f"{stem}.txt").write_text("a thing")
    (pictures / "empty.txt").write_text(" \n")
    (pictures / "latin.txt").write_bytes(b"caf\xe9")
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
    path = folders / "pictures" / "coffee.png"
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
    for path in (folders / "pictures").glob("*.txt"):
        path.unlink()
    assert run(folders, "--allow-orphans") == 2
    assert "not one pair is left: {'missing_caption': 3}" in capsys.readouterr().err
    assert not (folders / "out").exists()


def test_resolution_shrinks_and_never_enlarges(folders: Path) -> None:
    Image.fromarray(data.coffee()).save(folders / "pictures" / "coffee.png")
    assert run(folders, "--resolution", "128") == 0
    shards = PairShards(folders / "out")
    assert shards.index is not None
    assert shards.index.resolution == 128
    sizes = {pair.key: pair.target.size for pair in shards}
    assert sizes == {"astronaut": (140, 120), "cat": (140, 120), "coffee": (192, 128)}


def test_pictures_of_other_kinds_are_converted(folders: Path) -> None:
    see_through = PHOTOGRAPHS[2].convert("RGBA")
    see_through.putalpha(0)
    see_through.save(folders / "pictures" / "cat.png")
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
    source = open_source(folders / "pictures", task="identity", reference_dir=folders / "references")
    with pytest.raises(KeyboardInterrupt):
        pack(Interrupted(source), folders / "out", task="identity")
    assert not (folders / "out").exists()
    assert run(folders) == 0


def write_parquet(path: Path, rows: list[dict[str, Any]]) -> Path:
    pyarrow = pytest.importorskip("pyarrow", reason="parquet is an optional extra")
    path.parent.mkdir(parents=True, exist_ok=True)
    importlib.import_module("pyarrow.parquet").write_table(pyarrow.Table.from_pylist(rows), path)
    return path


def write_metadata(folder: Path, suffix: str, columns: Sequence[str]) -> Path:
    folder.mkdir(exist_ok=True)
    rows = []
    for name, photograph in zip(NAMES, PHOTOGRAPHS, strict=True):
        photograph.save(folder / f"{name}.png")
        photograph.rotate(180).save(folder / f"{name}-reference.png")
        values = (f"{name}.png", f"{name}-reference.png", f"a photograph of: {name}", f"turn the {name}")
        rows.append(dict(zip(columns, values, strict=True)))
    path = folder / f"metadata.{suffix}"
    if suffix == "jsonl":
        path.write_text("\n".join(map(json.dumps, rows)) + "\n")
    elif suffix == "csv":
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, columns)
            writer.writeheader()
            writer.writerows(rows)
    else:
        write_parquet(path, rows)
    return path


@pytest.mark.parametrize(
    ("suffix", "columns"),
    [
        ("jsonl", ("image", "conditioning_image", "caption", "instruction")),
        ("csv", ("file_name", "reference", "text", "edit_prompt")),
        ("parquet", ("target", "control", "prompt", "edit")),
    ],
)
def test_metadata_with_paths(tmp_path: Path, suffix: str, columns: Sequence[str]) -> None:
    path = write_metadata(tmp_path / "source", suffix, columns)
    for source, out in ((path.parent, tmp_path / "out"), (path, tmp_path / "out2")):
        assert main([str(source), str(out), "--task", "identity"]) == 0
        shards = PairShards(out)
        assert shards.keys == NAMES
        for pair, photograph in zip(shards, PHOTOGRAPHS, strict=True):
            np.testing.assert_array_equal(pixels(pair.target), pixels(photograph))
            np.testing.assert_array_equal(pixels(pair.reference), pixels(photograph.rotate(180)))
            assert pair.caption == f"a photograph of: {pair.key}"
            assert pair.instruction == f"turn the {pair.key}"


def test_columns_can_be_named_and_are_asked_for(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write_metadata(tmp_path / "source", "jsonl", ("after", "before", "words", "order")).parent
    command = [str(folder), str(tmp_path / "out"), "--task", "identity"]
    assert main(command) == 2
    assert "which column holds the image? It has: after, before, words, order; name one with --image-column" in (
        capsys.readouterr().err
    )
    command += ["--image-column", "after", "--reference-column", "before", "--caption-column"]
    assert main([*command, "wordz"]) == 2
    assert "no column 'wordz'" in capsys.readouterr().err
    assert main([*command, "words"]) == 0
    assert PairShards(tmp_path / "out")[0].instruction is None


def test_rows_that_lack_something_are_orphans(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_metadata(tmp_path / "source", "jsonl", ("image", "reference", "caption", "instruction"))
    lines = path.read_text().splitlines()
    lines += [
        json.dumps({"image": "gone.png", "reference": "cat.png", "caption": "c"}),
        json.dumps({"image": "cat.png", "caption": "c"}),
        json.dumps({"image": "cat.png", "reference": "cat.png", "caption": None}),
    ]
    path.write_text("\n".join(lines))
    command = [str(path), str(tmp_path / "out"), "--task", "identity"]
    assert main(command) == 2
    message = capsys.readouterr().err
    assert f"missing_target: metadata.jsonl, row 3: there is no file {path.parent / 'gone.png'}" in message
    assert "missing_reference: metadata.jsonl, row 4: column 'reference' is empty" in message
    assert "missing_caption: metadata.jsonl, row 5" in message
    assert main([*command, "--allow-orphans"]) == 0
    path.write_text("{\n")
    assert main([*command, "--overwrite"]) == 2
    assert "metadata.jsonl, line 1: not JSON" in capsys.readouterr().err
    assert len(PairShards(tmp_path / "out")) == 3, "a refused source leaves the set that was there"


def test_the_official_parquet_layout(tmp_path: Path) -> None:
    """Columns image, conditioning, caption, the pictures within, over several files; unnamed, named, or bare bytes."""
    rows: list[dict[str, Any]] = [
        {
            "image": {"bytes": png(photograph), "path": None},
            "conditioning": {"bytes": png(photograph.rotate(180)), "path": "x.png"},
            "caption": f"a photograph of: {name}",
        }
        for name, photograph in zip(NAMES, PHOTOGRAPHS, strict=True)
    ]
    write_parquet(tmp_path / "source/data/train-00000.parquet", rows[:2])
    write_parquet(tmp_path / "source/data/train-00001.parquet", rows[2:])
    assert main([str(tmp_path / "source"), str(tmp_path / "out"), "--task", "identity"]) == 0
    shards = PairShards(tmp_path / "out", require_reference=True)
    assert shards.keys == ["train-00000-0000000", "train-00000-0000001", "train-00001-0000000"]
    for pair, name, photograph in zip(shards, NAMES, PHOTOGRAPHS, strict=True):
        np.testing.assert_array_equal(pixels(pair.target), pixels(photograph))
        np.testing.assert_array_equal(pixels(pair.reference), pixels(photograph.rotate(180)))
        assert pair.caption == f"a photograph of: {name}"
    bare = [{**row, "image": row["image"]["bytes"], "conditioning": row["conditioning"]["bytes"]} for row in rows]
    bare[1]["image"] = b"torn"
    path = write_parquet(tmp_path / "bare.parquet", bare)
    assert main([str(path), str(tmp_path / "out2"), "--task", "identity"]) == 2
    assert main([str(path), str(tmp_path / "out2"), "--task", "identity", "--allow-orphans"]) == 0
    assert PairShards(tmp_path / "out2").keys == ["bare-0000000", "bare-0000002"]


def composite(left: Image.Image, right: Image.Image) -> Image.Image:
    """Set two square panels of 96 as Subjects200K does those of 512: 112 high, the right one at column 112."""
    canvas = Image.new("RGB", (224, 112), (255, 0, 255))
    canvas.paste(left, (8, 8))
    canvas.paste(right, (112, 8))
    return canvas


def test_subjects200k_gives_both_directions(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    left, right = (photograph.crop((0, 0, 96, 96)) for photograph in PHOTOGRAPHS[:2])
    good = {"compositeStructure": 5, "objectConsistency": 5, "imageQuality": 5}
    description = {"item": "a thing", "description_0": "it, left", "description_1": "it, right"}
    picture = {"bytes": png(composite(left, right)), "path": "pair.png"}
    rows = [
        {"image": picture, "quality_assessment": good, "description": description, "collection": "collection_1"},
        {"image": picture, "quality_assessment": {**good, "imageQuality": 3}, "description": description},
        {"image": picture, "quality_assessment": None, "description": description},
    ]
    path = write_parquet(tmp_path / "s" / "train.parquet", rows)
    assert main([str(path.parent), str(tmp_path / "out"), "--task", "identity", "--min-quality", "4"]) == 0
    assert "left out: 4 quality_below_4" in capsys.readouterr().out
    shards = PairShards(tmp_path / "out")
    assert shards.keys == ["pair-0", "pair-1"]
    for pair, target, reference, words in zip(shards, (left, right), (right, left), ("left", "right"), strict=True):
        np.testing.assert_array_equal(pixels(pair.target), pixels(target))
        np.testing.assert_array_equal(pixels(pair.reference), pixels(reference))
        assert pair.caption == f"it, {words}"
    assert main([str(path), str(tmp_path / "all"), "--task", "identity", "--format", "subjects200k"]) == 0
    assert len(PairShards(tmp_path / "all")) == 6
    write_parquet(path, [{**rows[0], "image": {"bytes": png(left), "path": "single.png"}}])
    assert main([str(path), str(tmp_path / "none"), "--task", "identity"]) == 2
    assert "96 x 96 is no composite of two square panels" in capsys.readouterr().err


def test_panels_are_cut_as_the_authors_cut_them() -> None:
    image = Image.fromarray(np.arange(528 * 1056, dtype=np.uint32).view(np.uint8).reshape(528, 1056, 4)[..., :3])
    values = pixels(image)
    left, right = split_composite(image)
    np.testing.assert_array_equal(pixels(left), values[8:520, 8:520])
    np.testing.assert_array_equal(pixels(right), values[8:520, 528:1040])
    assert split_composite(Image.new("RGB", (2064, 1040)))[1].size == (1024, 1024)


def test_a_missing_pyarrow_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_parquet(tmp_path / "t.parquet", [{"image": "a", "conditioning": "b", "caption": "c"}])
    real = importlib.import_module

    def without_pyarrow(name: str, *rest: Any) -> types.ModuleType:
        if name.startswith("pyarrow"):
            raise ImportError(name)
        return real(name, *rest)

    monkeypatch.setattr(importlib, "import_module", without_pyarrow)
    with pytest.raises(PackingError, match=r"t.parquet needs pyarrow: pip install pyarrow .*\[parquet\]"):
        open_source(path, task="identity")


def test_sources_of_the_wrong_kind_are_refused(folders: Path) -> None:
    (folders / "void").mkdir()
    (folders / "notes.xlsx").write_text("")
    (folders / "no.parquet").write_text("no parquet")
    refused: list[tuple[str, Path, dict[str, Any]]] = [
        ("there is no", folders / "absent", {}),
        ("holds no metadata.jsonl", folders / "pictures", {"source_format": "metadata"}),
        ("holds no parquet file", folders / "pictures", {"source_format": "parquet"}),
        ("holds no picture", folders / "void", {"reference_dir": folders / "references"}),
        ("is not a folder", folders / "pictures", {"reference_dir": folders / "absent"}),
        (r"tables are \.jsonl, \.csv or \.parquet", folders / "notes.xlsx", {}),
        ("cannot be read as parquet", folders / "no.parquet", {}),
        ("needs a folder", folders / "notes.xlsx", {"source_format": "folders"}),
    ]
    for message, source, options in refused:
        with pytest.raises(PackingError, match=message):
            open_source(source, task="identity", **options)


def test_keys_are_clean_unique_and_repeatable() -> None:
    names = ["Café crème.v2", "a/b", "a_b", "a b", "a_b-2", "...", "猫", "x" * 400]
    made = [Keys().make(name) for name in names]
    assert made[:2] == ["Cafe_creme_v2", "a_b"]
    keys = Keys()
    unique = [keys.make(name) for name in names]
    assert unique[1:5] == ["a_b", "a_b-2", "a_b-3", "a_b-2-2"]
    assert unique[5:7] == ["pair", "pair-2"]
    assert len(set(unique)) == len(names)
