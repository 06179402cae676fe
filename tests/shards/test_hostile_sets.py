"""Sets of pairs from elsewhere: names that lead out of a folder and HTML in texts are refused or harmless."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path

import pytest
from support.data.shard_sets import add_tar, patch, plain_sample, write_set

from dsd_lightning.shards import PairShards, ShardWriter
from dsd_lightning.shards.contact_sheet import write_contact_sheet
from dsd_lightning.shards.format import ShardError

SCRIPT = '<script>alert("1")</script>'


def files_of(folder: Path) -> set[Path]:
    return {file for file in folder.rglob("*") if file.is_file()}


@pytest.mark.parametrize("key", ["../../outside", "/outside", "a/../../outside"])
def test_names_that_lead_out_of_the_folder_write_nothing(key: str, tmp_path: Path) -> None:
    root = tmp_path / "in" / "set"
    root.mkdir(parents=True)
    add_tar(root / "shard-0.tar", plain_sample("fine") | plain_sample(key, 1))
    before = files_of(tmp_path)
    shards = PairShards(root)
    for position in range(len(shards)):
        assert shards[position].caption == "a thing"
    assert files_of(tmp_path) == before
    with (
        pytest.raises(ValueError, match="slashes"),
        ShardWriter(tmp_path / "new", task="identity", resolution=None) as writer,
    ):
        writer.write(key, patch(0), patch(1), "a thing")
    assert not list(tmp_path.glob("outside*"))


def test_links_in_a_tar_are_not_followed(tmp_path: Path) -> None:
    secret = tmp_path / "secret.txt"
    secret.write_text("secret")
    root = tmp_path / "set"
    root.mkdir()
    add_tar(root / "shard-0.tar", plain_sample("fine"))
    with tarfile.open(root / "shard-0.tar", "a") as tar:
        for part in ("target.png", "json"):
            link = tarfile.TarInfo(f"link.{part}")
            link.type, link.linkname = tarfile.SYMTYPE, str(secret)
            tar.addfile(link, io.BytesIO())
    assert PairShards(root).keys == ["fine"]


def test_an_index_that_names_a_tar_elsewhere_is_refused(tmp_path: Path) -> None:
    write_set(tmp_path / "elsewhere")
    root = write_set(tmp_path / "set")
    index = json.loads((root / "index.json").read_text())
    index["shards"][0]["name"] = "../elsewhere/" + index["shards"][0]["name"]
    (root / "index.json").write_text(json.dumps(index))
    with pytest.raises(ShardError, match=r"index\.json"):
        PairShards(root)


def test_the_page_of_a_set_escapes_keys_and_captions(tmp_path: Path) -> None:
    root = tmp_path / f"set{SCRIPT.replace('/', '')}"
    with ShardWriter(root, task="identity", resolution=None) as writer:
        writer.write("<b>key<b>", patch(0), patch(1), SCRIPT, instruction=SCRIPT)
    page = write_contact_sheet(PairShards(root), tmp_path / "page.html", 4).read_text()
    assert "<script>alert" not in page
    assert "<b>key" not in page
    assert "&lt;script&gt;" in page
