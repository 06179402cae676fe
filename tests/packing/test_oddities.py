"""Every command on one folder of all oddities: what is in order is used, and everything else is named with the reason."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
from PIL import Image
from skimage import data
from support.commands import compose_train, tiny
from support.refusals import QUICK

from dsd_lightning.distillation.records import DistillationError
from dsd_lightning.distillation.stages.captions import CaptionFiles, sample
from dsd_lightning.evaluation.errors import EvaluationError
from dsd_lightning.evaluation.samples.benchmark import folder as folder_benchmark
from dsd_lightning.generation.command import REFUSED
from dsd_lightning.generation.command import main as generate
from dsd_lightning.packing.__main__ import main as pack
from dsd_lightning.shards import PairShards
from dsd_lightning.training.run import train

READ = ("1", "2", "10", "turned", "upper", "linked/far")
"""Stems of the images that are in order, in the order of listing within their kind."""

UNREADABLE = ("broken.jpg", "empty.png", "text.png")
"""Images that cannot be decoded; their captions are in order."""

CP1252, WITHOUT, BLANK = "cp1252.png", "without.png", "blank.png"
"""Images whose caption is in another encoding, missing, or empty."""


SYSTEM = (".DS_Store", "._1.png", "Thumbs.db", "__MACOSX")


def write_oddities(root: Path) -> Path:
    """Fill a folder: targets with captions beside them in `target/`, references of the same names in `reference/`."""
    photograph = Image.fromarray(data.coffee()).resize((96, 64))
    turned = Image.Exif()
    turned[0x0112] = 6
    elsewhere = root / "elsewhere"
    for side in ("target", "reference"):
        folder = root / side
        (folder / "__MACOSX").mkdir(parents=True)
        (elsewhere / side).mkdir(parents=True)
        (folder / "linked").symlink_to(elsewhere / side)
        for name in ("1.png", "2.png", "10.png", "upper.PNG", "linked/far.png", CP1252, WITHOUT, BLANK):
            photograph.save(folder / name, "PNG")
        photograph.save(folder / "turned.jpg", exif=turned, quality=95)
        whole = (folder / "turned.jpg").read_bytes()
        for name, content in zip(UNREADABLE, (whole[: len(whole) // 2], b"", b"no image"), strict=True):
            (folder / name).write_bytes(content)
        for name in (".DS_Store", "._1.png", "Thumbs.db", "__MACOSX/1.png", "notes.pdf"):
            (folder / name).write_bytes(b"x")
    target = root / "target"
    for stem in (*READ, *(Path(name).stem for name in UNREADABLE)):
        (target / f"{stem}.txt").write_bytes(b"\xef\xbb\xbfa cup of coffee\r\n")
    (target / "cp1252.txt").write_bytes("a café".encode("cp1252"))
    (target / "blank.txt").write_text(" \n")
    return root


@pytest.fixture(scope="module")
def odd(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_oddities(tmp_path_factory.mktemp("odd"))


def test_packing_lists_all_that_it_leaves_out_and_training_uses_the_rest(
    odd: Path, tiny_base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "shards"
    assert pack([str(odd), str(out), "--task", "identity"]) == 2
    refused = capsys.readouterr().err
    assert "nothing was written" in refused
    assert WITHOUT in refused, "what the names show is refused before any file is read"
    assert not out.exists()
    assert pack([str(odd), str(out), "--task", "identity", "--allow-orphans"]) == 0
    listed = capsys.readouterr().out
    for name in (*UNREADABLE, CP1252, WITHOUT, BLANK):
        assert Path(name).stem in listed, name
    assert "iconv -f WINDOWS-1252" in listed
    assert "2 other_file" in listed, "what is neither image nor caption is counted"
    assert not any(name in listed for name in SYSTEM)
    assert f"{len(READ)} pairs in 1 tars" in listed
    shards = PairShards(out, task="identity")
    assert {shards[position].caption for position in range(len(shards))} == {"a cup of coffee"}
    sizes = [shards[position].target.size for position in range(len(shards))]
    assert sorted(set(sizes)) == [(64, 96), (96, 64)], "the turned image is upright"
    few = ["data.datamodule.source.validation_pairs=0", "data.datamodule.source.workers=0", "trainer.max_steps=2"]
    shown = ["data=shards", f"data.root={out}", "data.datamodule.batch_size=2"]
    without = [each for each in tiny(tiny_base) if not each.startswith("data.")]
    train(compose_train(tmp_path / "run", *without, *shown, *few, *QUICK), tmp_path / "run")
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["pairs_seen"] == 4


def test_generation_names_every_image_that_cannot_be_read(
    odd: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images = [path for path in sorted((odd / "target").iterdir()) if path.suffix.lower() in (".png", ".jpg")]
    jobs = tmp_path / "jobs.csv"
    with jobs.open("w", newline="", encoding="utf-8") as file:
        rows = [(str(path), "a hat", f"out/{number}.png") for number, path in enumerate([*images, odd / "nowhere.png"])]
        csv.writer(file).writerows([("image_path", "text", "output_path"), *rows])
    assert generate(["--jobs", str(jobs)]) == REFUSED
    message = capsys.readouterr().err
    for name in (*UNREADABLE, "._1.png", "nowhere.png"):
        assert name in message
    assert message.count("\n") == 2 + len(UNREADABLE) + 1
    assert not (tmp_path / "out").exists()


def test_evaluation_names_every_image_and_text_that_cannot_be_read(odd: Path) -> None:
    with pytest.raises(EvaluationError) as refusal:
        folder_benchmark(odd / "target")
    lines = str(refusal.value).splitlines()
    assert len(lines) == len((*UNREADABLE, CP1252, WITHOUT, BLANK))
    for name in (*UNREADABLE, "cp1252.txt", WITHOUT, BLANK):
        assert any(name in line for line in lines), name


def test_distillation_names_every_file_and_row_of_captions_that_it_cannot_read(odd: Path, tmp_path: Path) -> None:
    for name in ("latin.txt", "wide.csv", "types.jsonl", "quote.csv", "other.csv", "fine.csv"):
        content = {
            "latin.txt": "a café\n".encode("cp1252"),
            "wide.csv": b"caption\na cat, large\na dog\na bird, small\n",
            "types.jsonl": b'{"caption": 7}\n{"caption": "a fish"}\nno json\n["a"]\n{"caption": null}\n',
            "quote.csv": b'caption\na cow\n"a horse\n',
            "other.csv": b"words\na cow\n",
            "fine.csv": b"caption\na cup\n",
        }[name]
        (tmp_path / name).write_bytes(content)
    with pytest.raises(DistillationError) as refusal:
        sample(CaptionFiles(str(tmp_path)), 10, seed=0)
    lines = str(refusal.value).splitlines()[1:]
    for named in (
        "latin.txt is not UTF-8",
        "wide.csv, row 1 has 2 cells",
        "wide.csv, row 3 has 2 cells",
        "types.jsonl, row 1: column 'caption' holds a number (7)",
        "types.jsonl, row 3 is not JSON",
        "types.jsonl, row 4: a JSON object is needed",
        "quote.csv, row 2: unexpected end of data",
        "other.csv has no column",
    ):
        assert sum(named in line for line in lines) == 1, named
    assert len(lines) == 8, "and nothing that is in order"
    with pytest.raises(DistillationError, match=r"cp1252\.txt is not UTF-8 text.*iconv"):
        sample(CaptionFiles(str(odd / "target")), 10, seed=0)
