"""Images of a subject become all ordered pairs, captioned by files, names or a model; training never sees those set aside."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from rehearsal_server import RehearsalServer
from rehearsal_server.script import Asked
from support.llm.agent_parts import agent_of
from support.llm.rehearsals import rehearsing_agent

from dsd_lightning.agents.messages import Message, Sampling
from dsd_lightning.agents.providers.provider import Reply
from dsd_lightning.packing import PackingError
from dsd_lightning.packing import __main__ as command
from dsd_lightning.packing.own_images import AllPairs, read_images
from dsd_lightning.shards import PairShards
from dsd_lightning.shards.__main__ import main as shards_main
from dsd_lightning.shards.split import split_pairs


def draw(folder: Path, count: int, caption: bool = True) -> Path:
    """Write images of single colours, which name their number, and a table of captions."""
    folder.mkdir(parents=True)
    for number in range(count):
        Image.new("RGB", (32, 32), (number * 8, 0, 0)).save(folder / f"{number}.png")
        if caption:
            (folder / f"{number}.txt").write_text(f"caption {number}")
    return folder


@pytest.mark.parametrize(("count", "aside", "training"), [(4, 0, 12), (10, 2, 56), (30, 30, 552)])
def test_all_pairs_are_split_by_image(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], count: int, aside: int, training: int
) -> None:
    images, out = draw(tmp_path / "robot", count), tmp_path / "out"
    assert command.main([str(images), str(out), "--all-pairs", "--trigger", "ROBOT"]) == 0
    shown = capsys.readouterr().out
    assert f"{count} images of 1 subjects: {count * (count - 1)} ordered pairs" in shown
    assert f"{training} pairs train, {aside} validate" in shown
    shards = PairShards(out, task="identity", require_reference=True)
    split = split_pairs(shards, 64)
    assert (len(split.training), len(split.validation)) == (training, aside)
    assert split.left_out == count * (count - 1) - training - aside
    sides = [
        {
            shards.record(position).provenance[name]
            for position in positions
            for name in ("reference_image", "target_image")
        }
        for positions in (split.training, split.validation)
    ]
    assert not sides[0] & sides[1]
    pair = shards[0]
    target, reference = (image.getpixel((0, 0))[0] // 8 for image in (pair.target, pair.reference))  # type: ignore[index, union-attr]
    assert pair.key == f"{target}-from-{reference}"
    assert pair.caption == f"ROBOT, caption {target}"


def test_subjects_are_set_aside_as_a_whole(tmp_path: Path) -> None:
    for subject in "abcdef":
        draw(tmp_path / "images" / subject, 3)
    assert command.main([str(tmp_path / "images"), str(tmp_path / "out"), "--all-pairs"]) == 0
    shards = PairShards(tmp_path / "out")
    split = split_pairs(shards, 64)
    assert (split.by, len(split.training), len(split.validation), split.left_out) == ("subject", 30, 6, 0)
    assert len({shards.record(position).provenance["subject"] for position in split.validation}) == 1


def test_captions_come_from_the_table_then_files_then_names(tmp_path: Path) -> None:
    folder = draw(tmp_path / "robot", 1)
    for name in ("on_a_beach_02", "in the rain-3", "12"):
        Image.new("RGB", (32, 32)).save(folder / f"{name}.png")
    (folder / "captions.csv").write_text("image,caption,subject\n12.png,a dozen,other\n")
    texts = {image.name: (image.caption, image.subject) for image in read_images(folder, caption_from_name=True)}
    assert texts == {
        "0.png": ("caption 0", "robot"),
        "12.png": ("a dozen", "other"),
        "in the rain-3.png": ("in the rain", "robot"),
        "on_a_beach_02.png": ("on a beach", "robot"),
    }
    source = AllPairs(read_images(folder))
    assert sorted((orphan.name, orphan.reason) for orphan in source.orphans) == [
        ("0.png", "single_image"),
        ("12.png", "single_image"),
        ("in the rain-3.png", "missing_caption"),
        ("on_a_beach_02.png", "missing_caption"),
    ]
    (folder / "captions.csv").write_text("image,caption\n13.png,no such\n")
    with pytest.raises(PackingError, match=r"row 1: .* holds no image 13.png"):
        read_images(folder)


class Describes:
    """A provider that answers wrongly at first, and counts its calls."""

    model, identity = "stand-1", "stand"

    def __init__(self) -> None:
        self.calls = 0

    async def send(self, messages: Sequence[Message], sampling: Sampling, timeout_seconds: float) -> Reply:
        self.calls += 1
        wrong = self.calls == 1
        text = "a robot" if wrong else 'Here: {"caption": "this character\\n rests", "instruction": "let it rest"}'
        return Reply(text, "stop", "stand-1", 10, 5)

    async def close(self) -> None:
        pass


def test_a_model_writes_the_captions_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images, out, provider = draw(tmp_path / "robot", 3, caption=False), tmp_path / "out", Describes()
    (images / "2.txt").write_text("mine")
    monkeypatch.setattr(command, "find_agent", lambda chosen: agent_of(provider, tmp_path))
    arguments = [str(images), str(out), "--all-pairs", "--caption", "vlm"]
    assert command.main(arguments) == 0
    assert provider.calls == 3, "two images without a caption, one of which is asked about again"
    with (images / "captions.csv").open(newline="") as file:
        rows: list[dict[str, Any]] = list(csv.DictReader(file))
    assert [row["caption"] for row in rows] == ["this character rests", "this character rests", "mine"]
    assert [row["instruction"] for row in rows] == ["let it rest", "let it rest", ""]
    text = (images / "captions.csv").read_text().replace("this character rests", "edited", 1)
    (images / "captions.csv").write_text(text)
    assert command.main([*arguments, "--overwrite"]) == 0
    assert provider.calls == 3
    assert {pair.caption for pair in PairShards(out)} == {"edited", "this character rests", "mine"}


def test_images_that_a_model_does_not_describe_are_named_with_its_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    images = draw(tmp_path / "robot", 3, caption=False)
    arguments = [str(images), str(tmp_path / "out"), "--all-pairs", "--caption", "vlm"]

    def described(count: int) -> int:
        """Pack with a model that describes so many images, in the order in which it is asked."""
        left = iter(range(count))

        def answer(asked: Asked) -> str:
            seen = len(asked.turns) == 1 and next(left, None) is not None
            return '{"caption": "this character", "instruction": "show it"}' if seen else "a robot"

        with RehearsalServer(answer) as server:
            agent = rehearsing_agent("local", server, tmp_path / str(count), "agents.vlm.limits.concurrency=1")
            monkeypatch.setattr(command, "find_agent", lambda chosen: agent)
            return command.main(arguments)

    assert described(0) == 2
    assert "a-model captioned none of 3 images" in (said := capsys.readouterr().err)
    assert "a-model said: 'a robot'" in said
    assert not (images / "captions.csv").exists()
    assert described(2) == 2
    shown = capsys.readouterr()
    assert "2 captions written" in shown.out
    assert "not captioned: 2.png: That is no JSON object" in shown.err
    assert "missing_caption" in shown.err


def test_a_folder_of_shards_is_shown_as_a_page(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    images = draw(tmp_path / "robot", 3)
    (images / "0.txt").write_text("<b>bold & brave</b>")
    assert command.main([str(images), str(tmp_path / "out"), "--all-pairs"]) == 0
    capsys.readouterr()
    assert shards_main(["view", str(tmp_path / "out"), "--count", "6"]) == 0
    assert capsys.readouterr().out.strip() == str(tmp_path / "out.html")
    page = (tmp_path / "out.html").read_text()
    assert page.count("<img ") == 12
    assert "&lt;b&gt;bold &amp; brave" in page
    assert shards_main(["view", str(tmp_path / "nothing")]) == 2


def test_sets_of_others_are_read(tmp_path: Path) -> None:
    images = draw(tmp_path / "robot", 3)
    uno = '[{"image_paths": ["0.png"], "prompt": "one", "image_tgt_path": "1.png"}]'
    (images / "uno.json").write_text(uno)
    (images / "edits.jsonl").write_text('{"input": "0.png", "output": "2.png", "instruction": "make it red"}\n')
    (images / "several.json").write_text(uno.replace('["0.png"]', '["0.png", "2.png"]'))
    captions = {}
    for name in ("uno.json", "edits.jsonl"):
        assert command.main([str(images / name), str(tmp_path / name)]) == 0
        captions[name] = [pair.caption for pair in PairShards(tmp_path / name, require_reference=True)]
    assert captions == {"uno.json": ["one"], "edits.jsonl": ["make it red"]}
    assert command.main([str(images / "several.json"), str(tmp_path / "several")]) == 2
