"""Commands and code of README.md, docs/use.md and docs/export.md are accepted as they are written, and run on small weights."""

from __future__ import annotations

import re
import shlex
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from support.commands import CONF, environment
from support.exported_run import LORA, make_run
from support.models.golden_pipeline import BASE, GOLDEN, IMAGE
from support.processes import prepared

from dsd_lightning.export.command import _parser as export_parser
from dsd_lightning.generation import arguments
from dsd_lightning.generation.story import arguments as story_arguments

DOCUMENTS = [CONF.parent / name for name in ("README.md", "docs/use.md", "docs/export.md")]

PARSERS = {
    "python generate.py story": story_arguments.parser,
    "python generate.py": arguments.parser,
    "python -m dsd_lightning.export": export_parser,
}


def commands() -> list[tuple[str, str]]:
    """Return (command, flags) of the lines in code blocks, continued lines joined, comments cut."""
    commands = []
    for document in DOCUMENTS:
        for block in re.findall(r"```(?:bash)?\n(.*?)```", document.read_text(), re.DOTALL):
            for line in block.replace("\\\n", " ").splitlines():
                name = next((name for name in PARSERS if line.startswith(f"{name} ")), None)
                if name is not None:
                    commands.append((name, line.removeprefix(name)))
    return commands


@pytest.mark.parametrize(("command", "flags"), commands())
def test_a_documented_command_is_accepted(command: str, flags: str) -> None:
    PARSERS[command]().parse_args(shlex.split(flags, comments=True))


SIZES = {
    "python generate.py story": ["--steps", "1", "--size", "64", "--device", "cpu", "--offline"],
    "python generate.py": ["--steps", "1", "--size", "64", "--device", "cpu"],
    "python -m dsd_lightning.export": [],
}
"""What is added to a documented command so that it takes seconds."""

ELSEWHERE = {"--quantize": "tests/flux/test_quantize.py", "--agents": "tests/generation/test_story.py"}
"""Flags with a value whose effect needs an extra, or a key, and the test that has it."""


@pytest.fixture(scope="module")
def folder(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder in which the documented names are: images and a run."""
    folder = tmp_path_factory.mktemp("user")
    for name in ("a.png", "panel1.png"):
        IMAGE.save(folder / name)
    run = make_run(folder / "run", tiny_base, "arch=parallel", *LORA).folder
    for name in ("RUN_DIR", "outputs/2026-01-31/12-00-00"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).symlink_to(run)
    return folder


def here(flags: str) -> list[str]:
    """Return the flags with the golden weights in place of the released ones, without those of `ELSEWHERE`."""
    names = {"primecai/dsd_model": [str(GOLDEN / "tiny_official"), "--base_path", str(BASE)]}
    given = shlex.split(flags, comments=True)
    left_out = {index + offset for index, flag in enumerate(given) if flag in ELSEWHERE for offset in (0, 1)}
    return [word for index, flag in enumerate(given) if index not in left_out for word in names.get(flag, [flag])]


@pytest.mark.long
@pytest.mark.parametrize(("command", "flags"), dict.fromkeys(commands()))
def test_a_documented_command_runs(command: str, flags: str, folder: Path) -> None:
    program = shlex.split(command)[1:]
    if program[0] == "generate.py":
        program[0] = str(CONF.parent / "generate.py")
    given = [sys.executable, *program, *here(flags), *SIZES[command]]
    done = prepared.run(given, cwd=folder, env=environment(PYTHONPATH=str(CONF.parent)))
    assert done.returncode == 0, done.stderr


def test_the_documented_python_generates(tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (block,) = re.findall(r"## From Python\n\n```python\n(.*?)```", DOCUMENTS[1].read_text(), re.DOTALL)
    run = make_run(tmp_path / "run", tiny_base, "arch=parallel", *LORA)
    names = {
        "outputs/2026-01-31/12-00-00": run.folder,
        "black-forest-labs/FLUX.1-dev": BASE,
        "primecai/dsd_model": GOLDEN / "tiny_official",
        "pipe(image": "pipe(num_inference_steps=1, height=32, width=32, image",  # of weights of this size
    }
    for name, here in names.items():
        assert name in block
        block = block.replace(name, str(here))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    given: dict[str, Any] = {"image": IMAGE}
    exec(block, given)
    assert isinstance(given["images"][0], Image.Image)
