"""Lists the files of a folder in natural order, without hidden and system files, and follows linked subfolders."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator, Sequence
from pathlib import Path

_SYSTEM = ("thumbs.db", "desktop.ini", "__macosx")
_DIGITS = re.compile(r"(\d+)")
_URL = re.compile(r"(?:https?|ftp|s3|gs|hf|file):/|data:", re.IGNORECASE)


class FolderError(ValueError):
    """A folder that cannot be listed; the message names it."""


def list_files(folder: Path, suffixes: Sequence[str] | None = None, recursive: bool = True) -> list[Path]:
    """Return the files of a folder, in natural order of their paths (2.png before 10.png).

    Hidden files (a leading dot) and those of operating systems (Thumbs.db, __MACOSX) are left out. Linked subfolders are
    followed.

    Args:
        folder: the folder.
        suffixes: in lower case, with the dot; files with these endings, in any case. None takes all.
        recursive: whether subfolders are listed as well.

    Raises:
        FolderError: there is no such folder, or a link leads back to a folder above it.
    """
    if not folder.is_dir():
        raise FolderError(f"{folder}: there is no such folder")
    files = _walk(folder, recursive, (folder.resolve(),))
    chosen = [file for file in files if suffixes is None or file.suffix.lower() in suffixes]
    return sorted(chosen, key=lambda file: natural_key(file.relative_to(folder).as_posix()))


def natural_key(name: str) -> tuple[tuple[int, int | str], ...]:
    """Return a key by which names sort as people count: 2 before 10. Names are compared after Unicode normalisation."""
    parts = _DIGITS.split(normalised(name))
    return tuple((0, int(part)) if part.isdigit() else (1, part) for part in parts if part)


def normalised(name: str) -> str:
    """Return a name in Unicode's composed form (NFC): macOS stores accents apart."""
    return unicodedata.normalize("NFC", name)


def find_file(path: Path) -> Path | None:
    """Return the file at `path`, also where its name is stored in another Unicode form; None if there is none."""
    forms = (unicodedata.normalize(form, str(path)) for form in ("NFC", "NFD"))
    return next((file for file in (path, *map(Path, forms)) if file.is_file()), None)


def together(problems: Sequence[str], most: int = 20) -> str:
    """Return problems as one message, a line each; of more than `most`, the number of the others."""
    more = [f"... and {len(problems) - most} more"] if len(problems) > most else []
    return "\n".join([*problems[:most], *more])


def is_url(text: str) -> bool:
    """Return whether a text is a URL rather than a path, also one whose "//" a `Path` made "/"."""
    return _URL.match(text) is not None


def is_system_file(name: str) -> bool:
    """Return whether a file or folder of that name is hidden or an operating system's."""
    return name.startswith(".") or name.lower() in _SYSTEM


def _walk(folder: Path, recursive: bool, above: tuple[Path, ...]) -> Iterator[Path]:
    for entry in folder.iterdir():
        if is_system_file(entry.name):
            continue
        if not entry.is_dir():
            yield entry
        elif recursive:
            real = entry.resolve()
            if real in above:
                raise FolderError(f"{entry} is a link to {real}, a folder above it; remove the link")
            yield from _walk(entry, recursive, (*above, real))
