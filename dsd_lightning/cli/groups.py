"""Lists the groups of one command's configuration with the comments that their files begin with, for `--help`."""

from __future__ import annotations

from pathlib import Path

import yaml

from dsd_lightning.files.checkout import CHECKOUT

CONF = CHECKOUT / "conf"
"""The configuration of all commands."""

_WIDTH, _LONGEST = 34, 96
"""Characters before a comment, and of a comment."""


def describe_groups(command: str) -> str:
    """Return a line for each choice of the groups of `conf/COMMAND.yaml`, its default marked by `*`.

    Written for `hydra.help.template`, where a dollar sign stands twice.
    """
    lines = []
    for entry in yaml.safe_load((CONF / f"{command}.yaml").read_text(encoding="utf-8"))["defaults"]:
        if not isinstance(entry, dict):
            continue
        ((group, default),) = entry.items()
        if group.startswith(("/", "override ", "optional ")):
            continue
        for file in sorted((CONF / group).glob("*.yaml")):
            chosen = "*" if file.stem == default else " "
            lines.append(f"{chosen} {f'{group}={file.stem}':<{_WIDTH}}{_comment(file)}".rstrip())
    return "\n".join(lines).replace("$", "$$")


def _comment(file: Path) -> str:
    """Return the first comment of a file's beginning that is a sentence and not a command; empty if there is none."""
    for line in file.read_text(encoding="utf-8").splitlines():
        if not line.startswith("# "):
            break
        text = line.removeprefix("# ")
        if not text.startswith(("python ", "@package")):
            return text if len(text) <= _LONGEST else text[: _LONGEST - 3] + "..."
    return ""
