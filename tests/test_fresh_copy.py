"""A new user's first hour: the documents' commands are pasted in their order into a shell, in a fresh copy of the project."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Sequence
from contextlib import closing
from functools import partial
from pathlib import Path

import pytest
from PIL import Image
from support.commands import environment
from support.documents import ROOT, Pasted, commands, rule_of
from support.processes import prepared
from support.processes.shell_python import ShellPython
from support.small_sizes import sizes

PASTED = {
    ("README.md", "docs/train_flux.md", "docs/data.md"): (
        "FOLDER.html",
        "outputs/mine/run/samples/step_00000002.png",
        "sea.png",
    ),
    ("docs/distill.md",): (
        *("outputs/distillation/report.html", "outputs/distillation/labels/ada.html"),
        *("outputs/tuned/report.html", "outputs/students/curated/train", "outputs/students/held_out"),
    ),
}
"""Documents in the order in which they are read, and what their commands leave; a command that stands twice is run once."""

COPIED = {"assets", "callbacks", "conf", "datamodules", "dsd_lightning", "launch"}
"""Folders of the project that commands need; all files beside them are copied, too."""

DRAWINGS = 5
"""Of fewer, none is set aside for validation."""


def in_order(documents: Sequence[str]) -> list[tuple[str, str]]:
    """Return (shell code that makes room for it, command) of every command of documents that is pasted, once."""
    rules = [(rule_of(document, command), command) for document in documents for command in commands(document)]
    return list(
        {
            each: (rule[1].before, each) for rule, each in rules if rule is not None and isinstance(rule[1], Pasted)
        }.values()
    )


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """Return a copy of the project, with the files of a user's own that documents name."""
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    copy = tmp_path / "project"
    copy.mkdir()
    for each in ROOT.iterdir():
        if each.is_file():
            shutil.copy(each, copy / each.name)
        elif each.name in COPIED:
            shutil.copytree(each, copy / each.name, ignore=shutil.ignore_patterns("__pycache__"))
    drawings = sorted((ROOT / "assets" / "own_images").glob("*.png"))[:DRAWINGS]
    for folder in ("targets", "references", "my_images"):
        (copy / folder).mkdir()
        for file in drawings:
            shutil.copy(file, copy / folder / file.name)
            if folder != "references":
                (copy / folder / file.name).with_suffix(".txt").write_text(f"this character, drawing {file.stem}")
    with Image.open(drawings[0]) as image:
        for name in ("a.png", "reference.png"):
            image.convert("RGB").resize((64, 64)).save(copy / name)
    line = '{"image": "targets/%s", "reference": "references/%s", "caption": "this character"}\n'
    (copy / "metadata.jsonl").write_text("".join(line % (file.name, file.name) for file in drawings))
    table = pyarrow.table({"caption": [f"a photograph of dog number {number} in a park" for number in range(8)]})
    for name in ("FILE.parquet", "laion.parquet"):
        parquet.write_table(table, copy / name)
    return copy


@pytest.mark.long
@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize(("documents", "left"), PASTED.items(), ids=["README, train_flux, data", "distill"])
def test_documented_commands_run_in_their_order_in_a_fresh_copy(
    documents: tuple[str, ...], left: tuple[str, ...], copy: Path, tiny_base: Path
) -> None:
    with (
        closing(prepared.Server(copy)) as server,
        ShellPython(server, partial(sizes, base=tiny_base)) as python,
    ):
        paste(documents, copy, environment(PATH=python.path, PYTHONPATH=None))
    for name in left:
        assert (copy / name).exists(), name


def paste(documents: Sequence[str], copy: Path, variables: dict[str, str]) -> None:
    """Run every command of documents in `copy`."""
    asked = ["python", "-c", "import dsd_lightning as ours; print(ours.__file__)"]
    imported = subprocess.run(asked, cwd=copy, env=variables, capture_output=True, text=True, check=True).stdout
    assert Path(imported.strip()).is_relative_to(copy), "the commands would run the checkout's code"
    for before, command in in_order(documents):
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", f"{before}\n{command}"],
            cwd=copy,
            env=variables,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, f"{command}\n{done.stdout[-3000:]}\n{done.stderr[-4000:]}"
