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
    groups = {line[2:].partition("=")[0] for line in lines}
    for group in groups:
        assert (CONF / group).is_dir()
        choices = [line for line in lines if line[2:].startswith(f"{group}=")]
        assert len(choices) == len(list((CONF / group).glob("*.yaml")))
        assert sum(line.startswith("*") for line in choices) <= 1
    assert ("arch" in groups) == (command != "evaluate")
    assert ("benchmark" in groups) == (command == "evaluate")


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
