"""Readers of tables, texts, replies, shards and grids take any bytes: read rightly, or refused by the reader's own error."""

from __future__ import annotations

import csv
import json
import string
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.data.shard_sets import add_tar, plain_sample

from dsd_lightning.agents.reply_text import answer_text
from dsd_lightning.distillation.panels import NotTwoByTwo, find_panels
from dsd_lightning.distillation.rules import read_subject, read_verdict
from dsd_lightning.evaluation.judging.replies import HIGHEST, LOWEST, Score, parse
from dsd_lightning.files.rows import Table
from dsd_lightning.files.text import TextError, read_text
from dsd_lightning.shards import DamagedSample, PairShards, ShardError, verify_shards

TEXT = st.text(st.characters(codec="utf-8", exclude_characters="\0\r"), max_size=12)
NAMES = st.lists(st.text(string.ascii_letters, min_size=1, max_size=5), min_size=1, max_size=4, unique=True)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("any")


# --- Tables and texts.


@given(st.data())
def test_a_table_that_was_written_by_the_rules_is_read_as_it_was_written(folder: Path, data: st.DataObject) -> None:
    columns = data.draw(NAMES)
    rows = data.draw(st.lists(st.tuples(*[TEXT] * len(columns)), max_size=4))
    for suffix, delimiter in ((".csv", ","), (".tsv", "\t")):
        path = folder / f"table{suffix}"
        with path.open("w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file, delimiter=delimiter, quoting=csv.QUOTE_ALL)
            writer.writerows([columns, *rows])
        assert [tuple(row.cells[name] for name in columns) for row in Table(path)] == rows
    objects = [dict(zip(columns, row, strict=True)) for row in rows]
    (folder / "table.json").write_text(json.dumps(objects))
    (folder / "table.jsonl").write_text("\n".join(map(json.dumps, objects)))
    for suffix in (".json", ".jsonl"):
        assert [dict(row.cells) for row in Table(folder / f"table{suffix}")] == objects


@given(st.binary(max_size=60))
def test_a_text_is_its_bytes_in_utf_8_or_refused(folder: Path, content: bytes) -> None:
    path = folder / "a.txt"
    path.write_bytes(content)
    try:
        text = read_text(path)
    except TextError as error:
        assert "a.txt" in str(error)  # noqa: PT017
        with pytest.raises(UnicodeDecodeError):
            content.decode()
    else:
        expected = content.decode("utf-8-sig").replace("\r\n", "\n").replace("\r", "\n")
        assert text == expected


# --- Replies.

WORDS = (
    *("Score:", "rating", " 3", "/4", "{", '"score": 2', "<think>", "</think>", "```json", "**", "Yes", "no,", "0.95"),
    *(
        "confidence",
        "\N{FULLWIDTH COLON}",
        "是",
        "分",
        "out of",
        "%",
        "\n",
        "same",
        "not",
        "-",
        "1e9",
        "\N{FULLWIDTH DIGIT NINE}",
    ),
)
PIECES = st.lists(st.one_of(st.sampled_from(WORDS), st.text(max_size=6)), max_size=12).map("".join)


@given(PIECES)
def test_any_reply_is_read_or_unclear(reply: str) -> None:
    score = parse(reply)
    assert not isinstance(score, Score) or LOWEST <= score.value <= HIGHEST
    verdict = read_verdict(reply)
    if verdict is not None and verdict.confidence is not None:
        assert 0 <= verdict.confidence <= 1
    read_subject(reply)
    assert "<think>" not in answer_text(reply)


@given(st.integers(LOWEST, HIGHEST), st.text(string.ascii_letters + " ", max_size=20))
def test_what_is_thought_is_no_answer(score: int, thought: str) -> None:
    assert parse(f"<think>{thought} Score: {HIGHEST - score}</think>\nScore: {score}") == Score(score)


# --- Shards.


@settings(max_examples=60)
@given(st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 255)), max_size=8), st.integers(0, 40))
def test_damaged_tars_give_only_samples_that_were_written(
    folder: Path, changes: list[tuple[int, int]], lost: int
) -> None:
    members = plain_sample("a") | plain_sample("b", 1)
    root = folder / "tars"
    root.mkdir(exist_ok=True)
    path = root / "t.tar"
    path.unlink(missing_ok=True)
    add_tar(path, members)
    content = bytearray(path.read_bytes())
    for place, value in changes:
        content[place % len(content)] = value
    path.write_bytes(bytes(content[: len(content) - lost * 512]))
    try:
        shards = PairShards(root)
        assert set(shards.keys) <= {"a", "b"}
        for position in range(len(shards)):
            with suppress(DamagedSample):
                assert shards[position].caption
    except ShardError as error:
        assert str(root) in str(error)  # noqa: PT017
    with suppress(ShardError):
        assert verify_shards(root) or bytes(content) == path.read_bytes()


@given(st.binary(max_size=700))
def test_random_bytes_hold_no_sample(folder: Path, content: bytes) -> None:
    root = folder / "random"
    root.mkdir(exist_ok=True)
    (root / "t.tar").write_bytes(content)
    with suppress(ShardError):
        assert len(PairShards(root)) == 0


# --- Grids.


@given(st.integers(1, 80), st.integers(1, 80), st.integers(0, 2**32 - 1), st.sampled_from(["noise", "flat", "stripes"]))
def test_an_image_without_panels_is_never_cut(height: int, width: int, seed: int, kind: str) -> None:
    rng = np.random.default_rng(seed)
    values = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
    if kind == "flat":
        values[:] = values[0, 0]
    elif kind == "stripes":
        values[:] = values[:1]
    with pytest.raises(NotTwoByTwo):
        find_panels(values)
