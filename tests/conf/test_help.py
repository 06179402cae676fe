"""`--help` lists a command's own groups with their comments, and the installed commands work from any folder."""

from __future__ import annotations

import subprocess
import sys
from configparser import ConfigParser
from pathlib import Path

import pytest
from support.commands import ROOT, environment

from dsd_lightning.cli.groups import CONF, describe_groups


@pytest.mark.parametrize("command", ["train", "distill", "evaluate"])
def test_groups_are_those_of_the_command(command: str) -> None:
    lines = describe_groups(command).splitlines()
    assert max(map(len, lines)) <= 128
    heads = [(number, line) for number, line in enumerate(lines) if line[2] != " "]
    choices: dict[str, list[str]] = {}
    for number, line in heads:
        group, _, choice = line[2:].split("  ")[0].partition("=")
        choices.setdefault(group, []).append(choice.strip())
        beside = line[2:].partition("=")[2].removeprefix(choice).strip()
        assert beside or lines[number + 1].startswith("    "), f"{group}={choice} has no comment"
    for group, names in choices.items():
        assert names == sorted(file.stem for file in (CONF / group.partition("@")[0]).glob("*.yaml"))
        assert sum(line.startswith(f"* {group}=") for _, line in heads) <= 1
    assert ("arch" in choices) == (command != "evaluate")
    assert ("trainer/strategy" in choices) == (command == "train")
    assert ("agents/teacher" in choices) == (command != "train")
    assert ("benchmark" in choices) == (command == "evaluate")
    assert not any(line.endswith("...") for line in lines), "a comment is cut"


def test_installed_commands_work_from_another_folder(tmp_path: Path) -> None:
    config = ConfigParser()
    config.read(ROOT / "setup.cfg")
    scripts = dict(line.split(" = ") for line in config["options.entry_points"]["console_scripts"].strip().splitlines())
    assert set(scripts) == {"dsd-train", "dsd-distill", "dsd-generate", "dsd-evaluate"}
    module, _, function = scripts["dsd-train"].partition(":")
    # As the script that an installer writes.
    code = f"import sys; from {module} import {function}; sys.argv = ['dsd-train', '--help']; sys.exit({function}())"
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env=environment(PYTHONPATH=str(ROOT)),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "* arch=parallel" in done.stdout
    assert "benchmark=" not in done.stdout
    assert not list(tmp_path.iterdir())
