"""A distillation folder from elsewhere reads no image outside of it, and its texts stay text on the page of labels."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path

import pytest
from PIL import Image

from dsd_lightning.distillation.labels import prepare
from dsd_lightning.distillation.records import SIDES, DistillationError, Outcome, Record, Rejection
from dsd_lightning.distillation.report import write_report
from dsd_lightning.distillation.store import IMAGES, RECORDS, Store


def png() -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (4, 4)).save(buffer, "PNG")
    return buffer.getvalue()


def judged_run(root: Path, name: str = "pair-1") -> Store:
    """Write a run with one judged pair."""
    store = Store(root)
    record = Record(name, {"same": True, "confidence": 1.0}, {}, {side: png() for side in SIDES})
    store.write("verify", 0, "key", 1, Outcome([record]), 1.0)
    return store


def change_stored(store: Store, where: str) -> None:
    """Let the run's record name another place of its first image."""
    file = store.folder("verify", 0) / RECORDS
    values = json.loads(file.read_text())
    values["stored"][SIDES[0]] = where
    file.write_text(json.dumps(values) + "\n")


def test_an_image_outside_of_the_folder_is_refused(tmp_path: Path) -> None:
    judged_run(tmp_path / "other")
    outside = tmp_path / "part-00000"
    outside.mkdir()
    (outside / IMAGES).write_bytes((tmp_path / "other" / "verify" / "part-00000" / IMAGES).read_bytes())
    store = judged_run(tmp_path / "run")
    change_stored(store, f"../pair-1.{SIDES[0]}.png")
    with pytest.raises(DistillationError, match=r"'\.\.' is no stage's name"):
        prepare(tmp_path / "run", 1, "ada", 0)


@pytest.mark.parametrize("where", ["verify/missing.png", "/etc/passwd", "verify/../../x.png"])
def test_an_image_that_is_not_there_is_named(where: str, tmp_path: Path) -> None:
    store = judged_run(tmp_path)
    change_stored(store, where)
    with pytest.raises(DistillationError, match=r"lacks the image|is no stage's name"):
        prepare(tmp_path, 1, "ada", 0)


def test_a_link_in_the_tar_is_refused(tmp_path: Path) -> None:
    store = judged_run(tmp_path)
    name = f"pair-1.{SIDES[0]}.png"
    with tarfile.open(store.folder("verify", 0) / IMAGES, "w") as tar:
        folder = tarfile.TarInfo(name)
        folder.type = tarfile.DIRTYPE
        tar.addfile(folder)
    with pytest.raises(DistillationError, match="is no file"):
        prepare(tmp_path, 1, "ada", 0)


def test_the_page_of_labels_escapes_names(tmp_path: Path) -> None:
    script = '"><script>alert(1)<script>'
    judged_run(tmp_path, script)
    page = prepare(tmp_path, 1, "ada<script>", 0).read_text()
    assert "<script>alert" not in page
    assert page.count("<script>") == 1, "its own"


def test_the_report_escapes_what_records_say(tmp_path: Path) -> None:
    script = '"><script>alert(1)<script>'
    root = tmp_path / "run<script>"
    record = Record("pair-2", {"same": True, "confidence": 1.0, "words": [script]}, {}, {side: png() for side in SIDES})
    rejected = Rejection(Record(script, {}, {}, {side: png() for side in SIDES}), script, script)
    Store(root).write("verify", 0, "key", 2, Outcome([record], [rejected]), 1.0)
    page = write_report(root, ["verify"], {script: 1}).read_text()
    assert "<script>alert" not in page
    assert "&lt;script&gt;" in page
