"""Damaged, interrupted and mixed sets of pair shards are refused or read as far as they are intact."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import signal
import tarfile
from pathlib import Path

import pytest
from support.data.shard_sets import add_tar, patch, plain_sample, same, write_set

from dsd_lightning.shards import DamagedSample, PairShards, ShardError, ShardWriter, verify_shards


def test_the_wrong_set_is_refused(tmp_path: Path) -> None:
    root = write_set(tmp_path / "set")
    with pytest.raises(ShardError, match="'identity', but the run's task is 'depth'"):
        PairShards(root, task="depth")
    with pytest.raises(ShardError, match="not a folder"):
        PairShards(tmp_path / "absent")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ShardError, match=r"no \.tar file"):
        PairShards(tmp_path / "empty")
    index = root / "index.json"
    whole = index.read_text()
    index.write_text(whole.replace('"format_version": 1', '"format_version": 99'))
    with pytest.raises(ShardError, match="version 99"):
        PairShards(root)
    index.write_text(whole[:100])
    with pytest.raises(ShardError, match=r"index.json is damaged"):
        PairShards(root)


def test_tars_and_index_must_agree(tmp_path: Path) -> None:
    root = write_set(tmp_path)
    add_tar(root / "later.tar", plain_sample("later"))
    with pytest.raises(ShardError, match=r"1 tars are not in index.json, first 'later.tar'"):
        PairShards(root)
    (root / "later.tar").unlink()
    (root / "pairs-000000.tar").unlink()
    with pytest.raises(ShardError, match=r"names 1 tars that are not there, first 'pairs-000000.tar'"):
        PairShards(root)


@pytest.mark.parametrize(("absent", "what"), [("b.target.png", "target"), ("b.json", "record")])
def test_a_lacking_member_is_named(tmp_path: Path, absent: str, what: str) -> None:
    members = plain_sample("a") | plain_sample("b", 1) | plain_sample("c", 2)
    del members[absent]
    add_tar(tmp_path / "t.tar", members)
    with pytest.raises(ShardError, match=rf"t.tar: sample 'b' lacks its {what}.*add the file"):
        PairShards(tmp_path)


def test_repeated_keys_and_files_are_refused(tmp_path: Path) -> None:
    add_tar(tmp_path / "a.tar", plain_sample("same"))
    add_tar(tmp_path / "b.tar", plain_sample("same"))
    with pytest.raises(ShardError, match=r"b.tar: key 'same' is used in a.tar too"):
        PairShards(tmp_path)
    (tmp_path / "b.tar").unlink()
    add_tar(tmp_path / "a.tar", plain_sample("same") | {"same.target.jpg": b"x"})
    with pytest.raises(ShardError, match="two files for its target"):
        PairShards(tmp_path)


def test_a_damaged_image_harms_only_its_sample(tmp_path: Path) -> None:
    members = plain_sample("a") | plain_sample("b", 1) | plain_sample("c", 2)
    members["b.target.png"] = members["b.target.png"][:300]
    members["c.json"] = b"{"
    add_tar(tmp_path / "t.tar", members)
    shards = PairShards(tmp_path)
    assert shards[0].caption == "a thing"
    with pytest.raises(
        DamagedSample, match=r"t.tar: sample 'b' is damaged: its target: cannot decode 300 bytes"
    ) as caught:
        shards[1]
    assert (caught.value.key, caught.value.shard) == ("b", str(tmp_path / "t.tar"))
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)
    with pytest.raises(DamagedSample, match=r"'c' is damaged: c\.json is not JSON"):
        shards[2]
    assert len(verify_shards(tmp_path)) == 2


def test_a_record_without_caption_is_refused(tmp_path: Path) -> None:
    add_tar(tmp_path / "t.tar", plain_sample("a") | {"a.json": b'{"text": "a thing"}'})
    with pytest.raises(ShardError, match=r"no text field 'caption' \(it has: text\)"):
        PairShards(tmp_path)[0]


@pytest.mark.parametrize("field", ['"instruction": 7', '"task": ["identity"]', '"provenance": "x"', '"facts": [1]'])
def test_a_field_of_another_kind_is_named(tmp_path: Path, field: str) -> None:
    add_tar(tmp_path / "t.tar", plain_sample("a") | {"a.json": f'{{"caption": "c", {field}}}'.encode()})
    with pytest.raises(
        DamagedSample, match=rf"'a' is damaged: a.json: field {field.partition(':')[0]}".replace('"', "'")
    ):
        PairShards(tmp_path)[0]


def test_a_truncated_tar_keeps_its_readable_samples(tmp_path: Path) -> None:
    root = write_set(tmp_path, max_bytes=1e9)
    whole = PairShards(root)
    path = whole.paths[0]
    content, expected = path.read_bytes(), list(whole)
    with tarfile.open(path) as tar:
        first_sample = tar.getmember("pair-1.reference.webp").offset
    readable: list[int] = []
    for length in range(len(content) - 1024, 0, -3000):
        path.write_bytes(content[:length])
        if length < first_sample:
            with pytest.raises(ShardError, match=r"no sample in 1 tars.*(breaks off|truncated header)"):
                PairShards(root)
            readable.append(0)
            continue
        cut = PairShards(root)
        assert len(cut.damage) == 1
        assert str(path) in cut.damage[0]
        assert f"{len(content)} bytes, the file has {length}" in cut.damage[0]
        assert all(same(one, other) for one, other in zip(cut, expected, strict=False))
        readable.append(len(cut))
    assert readable == sorted(readable, reverse=True)
    assert set(readable) == set(range(8))
    path.write_bytes(content[: first_sample + 100])
    assert "breaks off" in PairShards(root, ignore_index=True).damage[0]


def test_a_broken_header_keeps_the_samples_before_it(tmp_path: Path) -> None:
    add_tar(tmp_path / "t.tar", plain_sample("a") | plain_sample("b", 1))
    with tarfile.open(tmp_path / "t.tar") as tar:
        offset = tar.getmember("b.reference.png").offset
    content = bytearray((tmp_path / "t.tar").read_bytes())
    content[offset] ^= 1
    (tmp_path / "t.tar").write_bytes(bytes(content))
    shards = PairShards(tmp_path)
    assert shards.keys == ["a"]
    assert f"broken header, at byte {offset}" in shards.damage[0]


def test_a_compressed_tar_is_reported(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "t.tar", "w:gz") as tar:
        tar.add(__file__, "a.json")
    with pytest.raises(ShardError, match="cannot be read as an uncompressed tar"):
        PairShards(tmp_path)


def test_the_sha256_alone_shows_a_flipped_bit(tmp_path: Path) -> None:
    root = write_set(tmp_path)
    shards = PairShards(root)
    content = bytearray(shards.paths[0].read_bytes())
    content[len(content) - 1] ^= 1  # in the padding, where nothing else looks
    shards.paths[0].write_bytes(bytes(content))
    assert PairShards(root, verify="size").damage == []
    assert "some bytes have changed" in PairShards(root, verify="sha256").damage[0]


def write_and_be_killed(root: Path) -> None:
    ShardWriter(root, task="t", resolution=None).write("a", None, patch(0), "c")
    os.kill(os.getpid(), signal.SIGKILL)


def test_an_interrupted_set_never_passes_for_whole(tmp_path: Path) -> None:
    root = tmp_path / "set"

    def interrupted() -> None:
        with ShardWriter(root, task="t", resolution=None, max_bytes=100) as writer:
            for number in range(3):
                writer.write(str(number), None, patch(number), "c")
            assert {path.suffix for path in root.iterdir()} == {".partial"}
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert not root.exists()
    # A kill leaves the partial files behind.
    child = multiprocessing.get_context("fork").Process(target=write_and_be_killed, args=(root,))
    child.start()
    child.join()
    assert child.exitcode == -signal.SIGKILL
    with pytest.raises(ShardError, match=r"pairs-000000.tar.partial.*still being written"):
        PairShards(root)
    with pytest.raises(ShardError, match="--overwrite"):
        ShardWriter(root, task="t", resolution=None)
    assert PairShards(write_set(root, overwrite=True)).damage == []
    assert not list(root.glob("*.partial"))


def test_every_step_of_finishing_is_safe_to_be_killed_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rename = os.replace
    seen: list[str] = []

    def watched(source: Path, target: Path) -> None:
        with pytest.raises(ShardError, match="still being written"):
            PairShards(tmp_path)
        seen.append(target.name)
        rename(source, target)

    monkeypatch.setattr(os, "replace", watched)
    write_set(tmp_path, count=4)
    assert seen[-1] == "index.json"
    assert len(seen) > 2
    assert len(PairShards(tmp_path)) == 4


def test_overwriting_replaces_the_whole_set(tmp_path: Path) -> None:
    write_set(tmp_path, count=7)
    (tmp_path / "notes.md").write_text("mine")
    with pytest.raises(ShardError, match=r"already holds 'index.json' \(\d files"):
        write_set(tmp_path, count=2)
    assert len(PairShards(write_set(tmp_path, count=2, overwrite=True))) == 2
    assert (tmp_path / "notes.md").exists()


def test_a_set_stays_until_the_one_that_replaces_it_is_whole(tmp_path: Path) -> None:
    write_set(tmp_path, count=7)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    def fail() -> None:
        with ShardWriter(tmp_path, task="identity", resolution=None, overwrite=True) as writer:
            writer.write("a", None, patch(0), "c")
            raise OSError("no space left on device")

    with pytest.raises(OSError, match="no space"):
        fail()
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
