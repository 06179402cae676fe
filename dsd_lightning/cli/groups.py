"""Lists the groups of one command's configuration with the comments that their files begin with, for `--help`."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterator
from pathlib import Path

import yaml

from dsd_lightning.files.checkout import CHECKOUT

CONF = CHECKOUT / "conf"
"""The configuration of all commands."""

_WIDTH, _LINE = 40, 128
"""Characters before a comment, and of a line."""

_SHARED = "common"
"""Folders of what choices are made of, and which are none themselves."""


def describe_groups(command: str) -> str:
    """Return the choices of the groups of `conf/COMMAND.yaml` with their comments, the default marked by `*`.

    Groups within a group (`agents/teacher`, `trainer/strategy`) follow it, with the default of the group's default.
    Written for `hydra.help.template`, where a dollar sign stands twice.
    """
    lines = [line for group, default in _groups(CONF / f"{command}.yaml") for line in _described(group, "", default)]
    return "\n".join(lines).replace("$", "$$")


def _groups(file: Path) -> Iterator[tuple[str, str | None]]:
    """Yield the groups of a file's list of defaults, each with the choice that it makes."""
    content = yaml.safe_load(file.read_text(encoding="utf-8"))
    for entry in content.get("defaults", ()):
        if isinstance(entry, dict):
            ((group, default),) = entry.items()
            if not group.startswith(("/", "override ", "optional ")):
                yield group, default


def _described(group: str, package: str, default: str | None) -> Iterator[str]:
    """Yield the lines of a group's choices, then those of the groups within it; `package` is `@` and where it goes."""
    for file in sorted((CONF / group).glob("*.yaml")):
        chosen = "*" if file.stem == default else " "
        yield from _lines(f"{chosen} {group}{package}={file.stem}", _comment(file))
    standard = CONF / group / f"{default}.yaml"
    for within, its_default in _groups(standard) if standard.is_file() else ():
        name, _, place = within.partition("@")
        if name != _SHARED:
            yield from _described(f"{group}/{name}", f"@{group}.{place}" if place else "", its_default)


def _lines(choice: str, comment: str) -> list[str]:
    """Return a choice and its comment in columns; a long choice has a line of its own."""
    head = f"{choice:<{_WIDTH + 2}}"
    inside = textwrap.wrap(comment, _LINE - _WIDTH - 2)
    if len(choice) > _WIDTH + 1 and inside:
        return [choice, *(" " * (_WIDTH + 2) + line for line in inside)]
    return [f"{head}{inside[0] if inside else ''}".rstrip(), *(" " * (_WIDTH + 2) + line for line in inside[1:])]


def _comment(file: Path) -> str:
    """Return the first sentence of the comment that a file begins with; empty if there is none."""
    words: list[str] = []
    for line in file.read_text(encoding="utf-8").splitlines():
        if not line.startswith("# "):
            break
        text = line.removeprefix("# ")
        if not text.startswith(("python ", "@package")):
            words.append(text)
    return re.split(r"(?<=\.)\s+(?=[A-Z])", " ".join(words), maxsplit=1)[0]
