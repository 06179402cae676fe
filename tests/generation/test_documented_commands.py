"""Commands and code of README.md, docs/use.md and docs/export.md are accepted as they are written."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from support.commands import CONF
from support.exported_run import LORA, make_run
from support.models.golden_pipeline import BASE, GOLDEN, IMAGE

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
    found = []
    for document in DOCUMENTS:
        for block in re.findall(r"```(?:bash)?\n(.*?)```", document.read_text(), re.DOTALL):
            for line in block.replace("\\\n", " ").splitlines():
                name = next((name for name in PARSERS if line.startswith(f"{name} ")), None)
                if name is not None:
                    found.append((name, line.removeprefix(name)))
    return found


@pytest.mark.parametrize(("command", "flags"), commands())
def test_a_documented_command_is_accepted(command: str, flags: str) -> None:
    PARSERS[command]().parse_args(shlex.split(flags, comments=True))


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
