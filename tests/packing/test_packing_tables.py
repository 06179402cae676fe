"""Tables of pairs (CSV, JSON Lines, Parquet, Subjects200K) become pair shards; rows with gaps are named."""

from __future__ import annotations

import csv
import importlib
import json
import types
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from support.data.packing_runs import NAMES, PHOTOGRAPHS, pixels, png

from dsd_lightning.files.rows import TableError
from dsd_lightning.packing import open_source
from dsd_lightning.packing.__main__ import main
from dsd_lightning.packing.subjects200k import split_composite
from dsd_lightning.shards import PairShards


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
        json.dumps({"image": "cat.png", "reference": "cat.png", "caption": ["a", "b"]}),
        json.dumps({"image": 7, "reference": "cat.png", "caption": "c"}),
        json.dumps({"image": "https://a.b/c.png", "reference": "cat.png", "caption": "c"}),
    ]
    path.write_text("\n".join(lines))
    command = [str(path), str(tmp_path / "out"), "--task", "identity"]
    assert main(command) == 2
    message = capsys.readouterr().err
    assert f"missing_target: {path}, row 4: there is no file {path.parent / 'gone.png'}" in message
    assert f"missing_reference: {path}, row 5: column 'reference' is empty" in message
    assert f"missing_caption: {path}, row 6" in message
    assert f"unreadable_caption: {path}, row 7: column 'caption' holds a list" in message
    assert f"unreadable_target: {path}, row 8: column 'image' holds a number (7)" in message
    assert "row 9: column 'image' holds the URL" in message
    assert main([*command, "--allow-orphans"]) == 0
    path.write_text("{\n")
    assert main([*command, "--overwrite"]) == 2
    assert "metadata.jsonl, row 1 is not JSON" in capsys.readouterr().err
    assert len(PairShards(tmp_path / "out")) == 3, "a refused source leaves the set that was there"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("image,reference,caption\na.png,b.png,this character, large\n", "row 1 has 4 cells, and the header has 3"),
        ('image,reference,caption\na.png,b.png,"open\n', "row 1: unexpected end of data; a quote is missing"),
        (f"image,reference,caption\na.png,b.png,{'x' * 200_000}\n", "row 1: field larger than field limit"),
        ("image,reference,caption\na.png,b.png,caf\xe9\n", "is not UTF-8 text"),
        ("image,reference,caption\n", "the source is empty"),
    ],
)
def test_broken_tables_are_refused_by_row(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], content: str, message: str
) -> None:
    (tmp_path / "t.csv").write_bytes(content.encode("latin-1"))
    assert main([str(tmp_path / "t.csv"), str(tmp_path / "out"), "--task", "identity", "--allow-orphans"]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_the_official_parquet_layout(tmp_path: Path) -> None:
    """Columns image, conditioning, caption, the images within, over several files; unnamed, named, or bare bytes."""
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
    assert shards.keys == ["train-00000-0000001", "train-00000-0000002", "train-00001-0000001"]
    for pair, name, photograph in zip(shards, NAMES, PHOTOGRAPHS, strict=True):
        np.testing.assert_array_equal(pixels(pair.target), pixels(photograph))
        np.testing.assert_array_equal(pixels(pair.reference), pixels(photograph.rotate(180)))
        assert pair.caption == f"a photograph of: {name}"
    bare = [{**row, "image": row["image"]["bytes"], "conditioning": row["conditioning"]["bytes"]} for row in rows]
    bare[1]["image"] = b"torn"
    path = write_parquet(tmp_path / "bare.parquet", bare)
    assert main([str(path), str(tmp_path / "out2"), "--task", "identity"]) == 2
    assert main([str(path), str(tmp_path / "out2"), "--task", "identity", "--allow-orphans"]) == 0
    assert PairShards(tmp_path / "out2").keys == ["bare-0000001", "bare-0000003"]


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
    image = {"bytes": png(composite(left, right)), "path": "pair.png"}
    rows = [
        {"image": image, "quality_assessment": good, "description": description, "collection": "collection_1"},
        {"image": image, "quality_assessment": {**good, "imageQuality": 3}, "description": description},
        {"image": image, "quality_assessment": None, "description": description},
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
    with pytest.raises(TableError, match=r"t.parquet needs pyarrow: pip install pyarrow .*\[parquet\]"):
        open_source(path, task="identity")
