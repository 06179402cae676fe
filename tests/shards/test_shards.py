"""Pair shards keep their samples, give them by position, and are checked, listed and indexed by the commands."""

from __future__ import annotations

import io
import json
import pickle
import socket
import subprocess
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import webdataset
from PIL import Image
from support.data.shard_sets import PHOTOGRAPHS, add_tar, patch, plain_sample, same, write_set
from torch.utils.data import DataLoader

from dsd_lightning.images.pixels import EXIF_ORIENTATION
from dsd_lightning.shards import PairShards, ShardError, ShardIndex, ShardWriter
from dsd_lightning.shards.__main__ import main
from dsd_lightning.shards.format import FORMAT_VERSION, check_key, dotted_key, member_part


def test_what_is_written_is_read_by_position(tmp_path: Path) -> None:
    shards = PairShards(write_set(tmp_path), task="identity", verify="sha256", require_reference=True)
    assert len(shards.paths) > 1
    assert shards.damage == []
    assert list(shards.keys) == [f"pair-{number}" for number in range(7)]
    for number in (6, 0, 3, 3):
        pair = shards[number]
        np.testing.assert_array_equal(np.asarray(pair.reference), np.asarray(patch(2 * number)))
        np.testing.assert_array_equal(np.asarray(pair.target), np.asarray(patch(2 * number + 1)))
        assert pair.caption == f"this thing, número {number}"
        assert pair.instruction == ("move it" if number % 2 else None)
        assert (pair.provenance, pair.facts) == ({"photograph": number}, {"shape": number})
        assert (pair.encoded, pair.text) == (None, None)
    assert same(shards[-1], shards[6])
    assert [pair.key for pair in shards] == shards.keys
    with pytest.raises(IndexError):
        shards[7]


def test_gray_of_sixteen_bits_makes_the_round_trip_as_image_and_as_file(tmp_path: Path) -> None:
    values = (np.arange(40 * 48, dtype=np.uint32).reshape(40, 48) * 31 % 65536).astype(np.uint16)
    depth, buffer = Image.fromarray(values), io.BytesIO()
    depth.save(buffer, "PNG")
    with ShardWriter(tmp_path, task="depth", resolution=None, image_format="webp") as writer:
        writer.write("image", depth, patch(1), "a thing")
        writer.write("file", buffer.getvalue(), patch(2), "a thing")
    with tarfile.open(tmp_path / "pairs-000000.tar") as tar:
        names = tar.getnames()
    assert {"image.reference.png", "image.target.webp", "file.reference.png"} <= set(names)
    for pair in PairShards(tmp_path, require_reference=True):
        assert pair.reference is not None
        assert (pair.reference.mode, pair.target.mode) == ("I;16", "RGB")
        np.testing.assert_array_equal(np.asarray(pair.reference), values)


def test_png_and_text_only(tmp_path: Path) -> None:
    with ShardWriter(tmp_path, task="text_only", resolution=None, image_format="png") as writer:
        writer.write("alone", None, patch(3), "a thing")
    with tarfile.open(tmp_path / "pairs-000000.tar") as tar:
        assert tar.getnames() == ["alone.target.png", "alone.json"]
    pair = PairShards(tmp_path)[0]
    assert pair.reference is None
    np.testing.assert_array_equal(np.asarray(pair.target), np.asarray(patch(3)))
    with pytest.raises(
        ShardError, match=r"pairs-000000.tar: sample 'alone' lacks its reference, 'alone.reference.webp"
    ):
        PairShards(tmp_path, require_reference=True)


def test_equal_samples_give_equal_bytes_and_one_changed_pixel_does_not(tmp_path: Path) -> None:
    one, two = (ShardIndex.read(write_set(tmp_path / name)) for name in ("one", "two"))
    assert one == two
    assert one is not None
    other = PHOTOGRAPHS[1].copy()
    with ShardWriter(tmp_path / "a", task="identity", resolution=None, image_format="png") as writer:
        writer.write("k", None, other, "c")
    other.putpixel((0, 0), (1, 2, 3))
    with ShardWriter(tmp_path / "b", task="identity", resolution=None, image_format="png") as writer:
        writer.write("k", None, other, "c")
    hashes = [ShardIndex.read(tmp_path / name).shards[0].sha256 for name in ("a", "b")]
    assert hashes[0] != hashes[1]


def test_the_index_states_the_set(tmp_path: Path) -> None:
    with ShardWriter(tmp_path, task="depth", resolution=64, encoding_key="k1") as writer:
        writer.write("a", patch(0), patch(1), "a thing", encoded={"clean": torch.zeros(1)})
        writer.reject("blurred", 2)
        writer.reject("blurred")
    values = json.loads((tmp_path / "index.json").read_text())
    size = (tmp_path / "pairs-000000.tar").stat().st_size
    sha256 = values["shards"][0].pop("sha256")
    assert len(sha256) == 64
    assert values == {
        "format_version": FORMAT_VERSION,
        "samples": 1,
        "task": "depth",
        "resolution": 64,
        "encoding_key": "k1",
        "shards": [{"name": "pairs-000000.tar", "samples": 1, "bytes": size}],
        "rejections": {"blurred": 3},
    }


def test_webdataset_and_tar_read_the_shards(tmp_path: Path) -> None:
    shards = PairShards(write_set(tmp_path))
    urls = [str(path) for path in shards.paths]
    samples = list(webdataset.WebDataset(urls, shardshuffle=False).decode("pilrgb"))
    assert [sample["__key__"] for sample in samples] == shards.keys
    for sample, pair in zip(samples, shards, strict=True):
        np.testing.assert_array_equal(np.asarray(sample["reference.webp"]), np.asarray(pair.reference))
        np.testing.assert_array_equal(np.asarray(sample["target.webp"]), np.asarray(pair.target))
        assert sample["json"]["caption"] == pair.caption
        assert sample["json"]["task"] == "identity"
    listing = subprocess.run(["tar", "tf", urls[0]], capture_output=True, text=True, check=True).stdout.split()
    assert listing[:3] == ["pair-0.reference.webp", "pair-0.target.webp", "pair-0.json"]


def test_shards_that_webdataset_wrote_are_read(tmp_path: Path) -> None:
    with webdataset.TarWriter(str(tmp_path / "theirs.tar")) as writer:
        for number in range(3):
            image = io.BytesIO()
            patch(number).save(image, "JPEG", quality=95)
            sample = {
                "reference.png": patch(number),
                "target.jpg": image.getvalue(),
                "json": {"caption": f"thing {number}"},
            }
            writer.write({"__key__": f"folder/{number:03d}", **sample, "notes.txt": b"ignored"})
    shards = PairShards(tmp_path, task="identity")
    assert shards.index is None
    assert shards.keys == ["folder/000", "folder/001", "folder/002"]
    np.testing.assert_array_equal(np.asarray(shards[1].reference), np.asarray(patch(1)))
    assert np.abs(np.asarray(shards[1].target).astype(int) - np.asarray(patch(1))).mean() < 8
    assert (shards[2].caption, shards[2].instruction, shards[2].facts) == ("thing 2", None, {})


def test_member_names_are_split_as_webdataset_splits_them() -> None:
    assert member_part("./a/b.target.PNG") == ("a/b", "target")
    assert member_part("a.b/c.json") == ("a.b/c", "record")
    assert member_part("c.encoded.safetensors") == ("c", "encoded")
    for other in ("._c.target.png", "c.txt", "c.target.png.bak", "c", "folder/.json"):
        assert (member_part(other), dotted_key(other)) == (None, None)
    assert dotted_key("a/b.v2.target.png") == "a/b.v2"
    assert dotted_key("a.b/c.target.png") is None


def test_samples_whose_keys_hold_dots_and_compressed_tars_are_reported(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    add_tar(tmp_path / "t.tar", plain_sample("a") | plain_sample("b.v2") | plain_sample("c.v2"))
    (tmp_path / "u.tar.gz").write_bytes(b"")
    assert PairShards(tmp_path).keys == ["a"]
    for command in ("verify", "list"):
        assert main([command, str(tmp_path)]) == 1
        output = capsys.readouterr().out
        assert "t.tar: 2 samples are passed over because their keys hold dots, the first 'b.v2'" in output
        assert "u.tar.gz: a compressed tar cannot be read by position" in output
        assert "whole" not in output
    assert main(["index", str(tmp_path)]) == 0
    assert "left out, key_with_dots: 2" in capsys.readouterr().out
    (tmp_path / "t.tar").unlink()
    with pytest.raises(ShardError, match=r"u.tar.gz: a compressed tar .*gunzip"):
        PairShards(tmp_path)


def test_the_size_of_a_target_is_that_of_the_upright_image(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[EXIF_ORIENTATION] = 6
    turned = io.BytesIO()
    patch(0).resize((60, 40)).save(turned, "JPEG", exif=exif)
    add_tar(tmp_path / "t.tar", {"a.target.jpg": turned.getvalue(), "a.json": b'{"caption": "c"}'})
    shards = PairShards(tmp_path)
    assert shards.target_size(0) == shards[0].target.size == (40, 60)


class Captions(torch.utils.data.Dataset[tuple[str, int]]):
    """Key and a sum of pixels by position: something that a loader can batch."""

    def __init__(self, shards: PairShards) -> None:
        self.shards = shards

    def __len__(self) -> int:
        return len(self.shards)

    def __getitem__(self, position: int) -> tuple[str, int]:
        return self.shards[position].key, int(np.asarray(self.shards[position].target).sum())


def test_workers_read_the_same(tmp_path: Path) -> None:
    shards = PairShards(write_set(tmp_path))
    here = [
        Captions(shards)[position] for position in range(7)
    ]  # also opens files, which workers must not inherit wrongly
    loader = DataLoader(Captions(shards), batch_size=None, num_workers=2)
    assert [tuple(each) for each in loader] == here


def test_a_pickle_is_small_and_reads_the_same(tmp_path: Path) -> None:
    shards = PairShards(write_set(tmp_path))
    first = shards[0]
    copy = pickle.loads(pickle.dumps(shards))
    shards.close()
    assert same(copy[0], first)
    assert same(shards[0], first)


@pytest.mark.parametrize("key", ["", "a.b", "a/b", "a\\b", "a b", "a\nb", "__meta", "x" * 300])
def test_bad_keys_are_refused(key: str) -> None:
    with pytest.raises(ValueError, match="key"):
        check_key(key)


def test_the_writer_refuses_what_readers_could_not_use(tmp_path: Path) -> None:
    jpeg = io.BytesIO()
    PHOTOGRAPHS[0].convert("L").save(jpeg, "JPEG")
    with ShardWriter(tmp_path, task="identity", resolution=None) as writer:
        writer.write("a", patch(0), patch(1), "a thing")
        refused: list[tuple[str, Callable[[], None]]] = [
            ("key 'a' was already written", lambda: writer.write("a", None, patch(1), "a thing")),
            ("'b' has no caption", lambda: writer.write("b", None, patch(1), "  ")),
            ("no encoding_key", lambda: writer.write("b", None, patch(1), "c", encoded={"x": torch.zeros(1)})),
            ("plain JSON", lambda: writer.write("b", None, patch(1), "c", facts={"x": np.int64(1)})),
            ("upright RGB image", lambda: writer.write("b", None, jpeg.getvalue(), "c")),
        ]
        for message, attempt in refused:
            with pytest.raises(ValueError, match=message):
                attempt()
    assert PairShards(tmp_path).keys == ["a"]
    with (
        pytest.raises(ShardError, match="no sample was written"),
        ShardWriter(tmp_path / "b", task="x", resolution=None),
    ):
        pass
    assert not (tmp_path / "b").exists()


def test_image_files_are_stored_as_they_are(tmp_path: Path) -> None:
    jpeg = io.BytesIO()
    PHOTOGRAPHS[2].save(jpeg, "JPEG")
    with ShardWriter(tmp_path, task="identity", resolution=None) as writer:
        writer.write("a", jpeg.getvalue(), patch(2), "a cat")
    with tarfile.open(tmp_path / "pairs-000000.tar") as tar:
        assert tar.getnames() == ["a.reference.jpg", "a.target.webp", "a.json"]
        stored = tar.extractfile("a.reference.jpg")
        assert stored is not None
        assert stored.read() == jpeg.getvalue()


def test_encodings_are_kept_under_their_key(tmp_path: Path) -> None:
    clean, ids = torch.randn(16, 4, 8).to(torch.bfloat16), torch.arange(5)
    with ShardWriter(tmp_path, task="identity", resolution=48, encoding_key="parallel-v1") as writer:
        writer.write(
            "a",
            patch(0),
            patch(1),
            "c",
            encoded={"clean": clean, "other": clean.mT},
            text={"ids": ids, "pooled": clean},
        )
    pair = PairShards(tmp_path, encoding_key="parallel-v1")[0]
    assert pair.encoded is not None
    assert pair.text is not None
    assert torch.equal(pair.encoded["clean"], clean)
    assert torch.equal(pair.encoded["other"], clean.mT)
    assert torch.equal(pair.text["ids"], ids)
    assert pair.encoded["clean"].dtype == torch.bfloat16
    unread = PairShards(tmp_path)[0]
    assert (unread.encoded, unread.text) == (None, None)
    with pytest.raises(ShardError, match=r"'parallel-v1', but 'concat-v1'"):
        PairShards(tmp_path, encoding_key="concat-v1")
    with pytest.raises(ShardError, match="no encodings with a key, but 'concat-v1'"):
        PairShards(write_set(tmp_path / "plain"), encoding_key="concat-v1")


def test_commands(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = write_set(tmp_path / "set")
    assert main(["verify", str(root)]) == 0
    assert "whole" in capsys.readouterr().out
    assert main(["list", str(root)]) == 0
    listing = capsys.readouterr().out
    assert "7 pairs in" in listing
    assert "task: identity" in listing
    assert "pair-6" in listing
    assert main(["index", str(root)]) == 2
    assert "exists already" in capsys.readouterr().err
    whole = (root / "index.json").read_text()
    (root / "index.json").unlink()
    assert main(["index", str(root)]) == 0
    index = json.loads((root / "index.json").read_text())
    assert index["resolution"] is None  # the one thing that tars do not tell
    assert index | {"resolution": 48} == json.loads(whole)
    shard = next(iter(sorted(root.glob("*.tar"))))
    shard.write_bytes(shard.read_bytes()[:-5000])
    assert main(["verify", str(root)]) == 1
    assert shard.name in capsys.readouterr().out
    assert main(["list", str(root)]) == 1
    assert main(["index", str(root), "--overwrite"]) == 2
    assert main(["verify", str(tmp_path / "absent")]) == 2
    assert "not a folder" in capsys.readouterr().err


def test_indexing_takes_in_tars_and_keeps_what_the_index_said(tmp_path: Path) -> None:
    root = write_set(tmp_path)
    add_tar(root / "later.tar", plain_sample("later") | {"later.json": b'{"caption": "c", "task": "identity"}'})
    ended = subprocess.Popen(["true"])
    ended.wait()
    (root / f".index.json.{socket.gethostname()}-{ended.pid}-0.partial").touch()  # of a killed command
    assert main(["index", str(root), "--overwrite"]) == 0
    shards = PairShards(root, task="identity", verify="sha256")
    assert shards.damage == []
    assert "later" in shards.keys
    assert shards.index is not None
    assert shards.index.resolution == 48


def test_indexing_refuses_a_mixture_of_tasks(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    add_tar(
        tmp_path / "t.tar", plain_sample("a") | plain_sample("b") | {"b.json": b'{"caption": "c", "task": "depth"}'}
    )
    assert main(["index", str(tmp_path)]) == 2
    assert "several tasks" in capsys.readouterr().err
    assert main(["index", str(tmp_path), "--task", "depth"]) == 0
    index = ShardIndex.read(tmp_path)
    assert index is not None
    assert (index.task, index.samples) == ("depth", 2)
