"""The Dockerfile installs the requirements of setup.cfg and of the extras that it names, each at its pin."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from configparser import ConfigParser
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from support.commands import ROOT


def test_all_requirements_are_pinned_and_extras_among_them() -> None:
    dockerfile = re.sub(r"\\\n\s*", "", (ROOT / "Dockerfile").read_text())
    (command,) = re.findall(
        r"^RUN (python -c .*?) > /tmp/requirements.txt && pip install .*-c constraints.txt", dockerfile, re.M
    )
    program, *given = shlex.split(command)
    assert program == "python"
    printed = subprocess.check_output([sys.executable, *given], cwd=ROOT, text=True)
    required = [Requirement(line) for line in printed.splitlines() if line.strip()]
    pins = {
        canonicalize_name(Requirement(line).name): Requirement(line)
        for line in Path(ROOT / "constraints.txt").read_text().splitlines()
        if line.strip() and not line.startswith("#")
    }
    for each in required:
        pin = pins[canonicalize_name(each.name)]
        assert each.specifier.contains(next(iter(pin.specifier)).version), f"{each}: pinned as {pin}"
    config = ConfigParser()
    config.read(ROOT / "setup.cfg")
    names = {canonicalize_name(each.name) for each in required}
    for extra in ("parquet", "report", "ui", "quantize"):
        lines = config["options.extras_require"][extra].split("\n")
        assert {canonicalize_name(Requirement(line).name) for line in lines if line} <= names, extra
