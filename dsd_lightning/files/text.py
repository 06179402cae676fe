"""Reads text files: UTF-8 with or without byte order mark, any line ending; anything else is refused by name."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

_UTF16 = (b"\xff\xfe", b"\xfe\xff")


class TextError(ValueError):
    """A file that is not UTF-8 text; the message names it and how to convert it."""


def read_text(path: Path) -> str:
    r"""Return a file's text, without byte order mark; lines end in "\n".

    Raises:
        TextError: it is not UTF-8.
        FileNotFoundError: there is no such file.
    """
    with open_text(path) as file:
        return file.read()


@contextmanager
def open_text(path: Path, newline: str | None = None) -> Iterator[TextIO]:
    r"""Open a text file to read; an encoding error inside the block names the file.

    Args:
        path: the file.
        newline: as in `open`; "" leaves line endings as they are, which `csv` needs.

    Raises:
        TextError: it is not UTF-8.
        FileNotFoundError: there is no such file.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: there is no such file")
    try:
        with path.open(encoding="utf-8-sig", newline=newline) as file:
            yield file
    except UnicodeDecodeError as error:
        with path.open("rb") as raw:
            encoding = "UTF-16" if raw.read(2) in _UTF16 else "WINDOWS-1252"
        raise TextError(
            f"{path} is not UTF-8 text ({error.reason} at byte {error.start}); convert it, for example: "
            f"iconv -f {encoding} -t UTF-8 {path.name} > converted{path.suffix}"
        ) from error
