"""Writes folders of files atomically, with a manifest by which damage is noticed.

A folder is filled under another name, every file and the folder flushed to the disk, and then renamed. Its manifest holds
each file's size and sha256; it is written last, so a folder without one was never finished.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from dsd_lightning.files.atomic import PARTIAL, rename, sync, write_json

MANIFEST = "manifest.json"

READABLE = 0o644
"""Mode of a file that other users may read; safetensors' own is 0600."""

ASIDE = ".replaced"
"""Ending of the name of a folder that a newer one of the same name is about to replace."""


class DamagedError(RuntimeError):
    """A folder that is not as it was written; the message names the file and what is wrong with it."""


@contextmanager
def atomic_folder(folder: Path) -> Iterator[Path]:
    """Yield an empty folder beside `folder`; when the block ends without an error it is committed as `folder`.

    A folder that has the name already is replaced. Whatever interrupts the block leaves `folder` as it was, and at most
    a `.partial` folder that the next attempt removes.
    """
    yield begin(folder)
    commit(folder)


def partial_of(folder: Path) -> Path:
    """Return the folder that is filled to become `folder`: one name for all processes that fill it together."""
    return folder.with_name(folder.name + PARTIAL)


def begin(folder: Path) -> Path:
    """Make the empty folder that `commit` will turn into `folder`, and return it."""
    partial, aside = partial_of(folder), folder.with_name(folder.name + ASIDE)
    folder.parent.mkdir(parents=True, exist_ok=True)
    if aside.exists() and not folder.exists():
        rename(aside, folder)
    for leftover in (partial, aside):
        if leftover.exists():
            shutil.rmtree(leftover)
    partial.mkdir()
    return partial


def commit(folder: Path, described: Mapping[str, Mapping[str, Any]] = MappingProxyType({})) -> None:
    """Write the manifest of the files since `begin`, and give the folder its name.

    Args:
        folder: as it was given to `begin`.
        described: what `describe` returned for files that need not be read again; they are on the disk already.
    """
    partial, aside = partial_of(folder), folder.with_name(folder.name + ASIDE)
    manifest: dict[str, Any] = {}
    for name in _files(partial):
        (partial / name).chmod(READABLE)
        if name not in described:
            sync(partial / name)
        manifest[name] = described.get(name) or describe(partial / name)
    write_json(partial / MANIFEST, manifest)
    if folder.exists():
        rename(folder, aside)
    rename(partial, folder)
    if aside.exists():
        shutil.rmtree(aside)


def verify(folder: Path, only: Collection[str] | None = None, *, contents: bool = True) -> None:
    """Check the files of a committed folder against its manifest.

    Args:
        folder: written by `atomic_folder`.
        only: names of the files to check; all if None.
        contents: False checks that the files are there in their size, and reads none.

    Raises:
        DamagedError: naming the first missing, changed or unexpected file.
    """
    manifest = folder / MANIFEST
    if not manifest.is_file():
        raise DamagedError(f"{folder} is unfinished: it has no {MANIFEST}, which is written last")
    files = read_json(manifest)
    if not all(isinstance(facts, Mapping) for facts in files.values()):
        raise DamagedError(f"{manifest} is damaged: it does not describe files")
    if only is None:
        unexpected = set(_files(folder)) - set(files) - {MANIFEST}
        if unexpected:
            raise DamagedError(f"{folder} holds {sorted(unexpected)}, which its {MANIFEST} does not list")
    for name in files if only is None else only:
        if name not in files:
            raise DamagedError(f"{manifest} does not list {name}")
        verify_file(folder / name, files[name], contents=contents)


def verify_file(file: Path, facts: Mapping[str, Any], *, contents: bool = True) -> None:
    """Check a file against what `describe` returned when it was written; its size alone without `contents`.

    Raises:
        DamagedError: naming the file.
    """
    if not file.is_file():
        raise DamagedError(f"{file} is missing")
    size = file.stat().st_size
    if size != facts.get("bytes"):
        raise DamagedError(f"{file} is damaged: {size} bytes instead of {facts.get('bytes')}")
    if contents and _sha256(file) != facts.get("sha256"):
        raise DamagedError(f"{file} is damaged: its sha256 is not the one it was written with")


def describe(file: Path) -> dict[str, Any]:
    """Return a file's size in bytes and its sha256."""
    return {"bytes": file.stat().st_size, "sha256": _sha256(file)}


def write_tensors(file: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> None:
    """Write tensors (and text by name, in the file's header) as safetensors, flushed to the disk."""
    save_file(
        {name: value.detach().contiguous() for name, value in tensors.items()}, file, dict(metadata or {}) or None
    )
    file.chmod(READABLE)
    sync(file)


@contextmanager
def opened_tensors(file: Path) -> Iterator[Any]:
    """Open a safetensors file, of which tensors and parts of them are read when they are asked for.

    Raises:
        DamagedError: naming the file.
    """
    try:
        with safe_open(file, framework="pt") as tensors:
            yield tensors
    except (SafetensorError, OSError) as error:
        raise DamagedError(f"{file} cannot be read: {error}") from error


def read_json(file: Path) -> dict[str, Any]:
    """Return the object in a JSON file.

    Raises:
        DamagedError: if the file holds no JSON object.
    """
    try:
        content = json.loads(file.read_text())
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise DamagedError(f"{file} is damaged: {error}") from error
    if not isinstance(content, dict):
        raise DamagedError(f"{file} is damaged: it holds no JSON object")
    return content


def _files(folder: Path) -> list[str]:
    """Return the files in a folder and in folders within it, by their path in it."""
    return sorted(file.relative_to(folder).as_posix() for file in folder.rglob("*") if not file.is_dir())


def _sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
