"""Writes files so that a reader sees the old content or the new, never a part, also after a power cut.

The content goes to a temporary file beside the target, is flushed to the disk, and takes the target's name; then the folder
is flushed. The temporary name holds host, process and a counter, so that two writers never share it. A process that is
killed leaves it behind; `remove_leftovers` removes those of processes that have ended.
"""

from __future__ import annotations

import itertools
import json
import os
import shutil
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

PARTIAL = ".partial"
"""Ending of the name of a file or folder that is not complete yet."""

_COUNTER = itertools.count()


def partial_of(path: Path) -> Path:
    """Return a hidden name beside `path` that no other call, process or host returns."""
    return path.with_name(f".{path.name}.{socket.gethostname()}-{os.getpid()}-{next(_COUNTER)}{PARTIAL}")


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield the name of a temporary file, which becomes `path` when the block ends without an error.

    Folders above `path` are created. If the block fails, `path` is as it was and the temporary file is gone.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = partial_of(path)
    try:
        yield temporary
        sync(temporary)
        os.replace(temporary, path)
        sync(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file atomically."""
    with replacing(path) as temporary:
        temporary.write_bytes(content)


def write_text(path: Path, content: str) -> None:
    r"""Write a text file atomically: UTF-8, lines end in "\n"."""
    with replacing(path) as temporary:
        temporary.write_text(content, encoding="utf-8", newline="\n")


def write_json(path: Path, content: Any, indent: int | None = 2) -> None:
    """Write a value as JSON, atomically.

    Raises:
        ValueError: NaN or infinity, which are not JSON.
    """
    write_text(path, json.dumps(content, indent=indent, ensure_ascii=False, allow_nan=False) + "\n")


@contextmanager
def replacing_folder(folder: Path) -> Iterator[Path]:
    """Yield an empty folder beside `folder`, which takes its place when the block ends without an error.

    A reader may find no folder of that name for the moment between two renames.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary, old = partial_of(folder), partial_of(folder)
    temporary.mkdir()
    try:
        yield temporary
        for file in temporary.rglob("*"):
            sync(file)
        if folder.exists():
            rename(folder, old)
        rename(temporary, folder)
    finally:
        for leftover in (temporary, old):
            shutil.rmtree(leftover, ignore_errors=True)


def rename(source: Path, target: Path) -> None:
    """Give a file or folder that is complete its name, and flush the folder that holds it.

    `target` may be a file, which is replaced, or an empty folder; a folder with content has to be moved away first.
    """
    os.replace(source, target)
    sync(target.parent)


def sync(path: Path) -> None:
    """Flush a file or folder to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def flush(file: IO[Any]) -> None:
    """Flush an open file to the disk."""
    file.flush()
    os.fsync(file.fileno())


def remove_leftovers(folder: Path) -> None:
    """Remove temporary files in `folder` that processes of this host left behind when they were killed."""
    host = socket.gethostname()
    for leftover in folder.glob(f".*.{host}-*{PARTIAL}"):
        process = leftover.name.removesuffix(PARTIAL).rpartition(f".{host}-")[2].partition("-")[0]
        if process.isdigit() and not is_alive(int(process)) and leftover.is_file():
            leftover.unlink(missing_ok=True)


def is_alive(process: int) -> bool:
    """Return whether a process of this host runs, by its id."""
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True  # it is somebody else's
    return True
