"""The notebook of the demo runs from its folder, cell by cell, and ends with a generated image."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from support.commands import ROOT, environment, tiny_miniature
from support.processes import prepared

NOTEBOOK = ROOT / "notebooks" / "demo.ipynb"


def code_of(notebook: Path, parameters: str) -> str:
    """Return the code of a notebook's cells, with `parameters` behind the cell that holds its own."""
    cells = [cell for cell in json.loads(notebook.read_text())["cells"] if cell["cell_type"] == "code"]
    assert all(cell["outputs"] == [] for cell in cells)
    parts = []
    for cell in cells:
        parts.append("".join(cell["source"]))
        if "parameters" in cell["metadata"].get("tags", ()):
            parts.append(parameters)
    assert parameters in parts
    return "\n".join(parts)


@pytest.mark.long
@pytest.mark.slow
def test_the_cells_train_and_generate(tiny_base: Path, tmp_path: Path) -> None:
    more = [*tiny_miniature(tiny_base), "logger=csv", "callbacks.probe=null"]
    more = [
        each for each in more if not each.startswith(("trainer.max_steps", "trainer.val_check", "callbacks.probe."))
    ]
    run = tmp_path / "run"
    code = code_of(NOTEBOOK, f"RUN, STEPS, MORE = {str(run)!r}, 2, {more!r}")
    ended = prepared.run([sys.executable, "-c", code], cwd=NOTEBOOK.parent, env=environment())
    assert ended.returncode == 0, ended.stderr
    assert (run / "generated.png").is_file()
    assert json.loads((run / "summary.json").read_text())["steps"] == 2


def test_without_a_checkout_the_address_is_asked_for(tmp_path: Path) -> None:
    code = code_of(NOTEBOOK, "REPOSITORY = ''")
    ended = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert ended.returncode == 1
    assert "set REPOSITORY" in ended.stderr
