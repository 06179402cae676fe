"""Probes run what training steps compile: each kind of block is compiled once in a whole run."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from support.commands import ROOT, run

SCRIPT = Path(__file__).with_name("compiled_probes.py")


@pytest.mark.long
def test_probes_and_steps_share_their_compiled_blocks(tiny_base: Path, tmp_path: Path) -> None:
    path = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    # aot_eager traces as the default does, and builds no kernels.
    ended = run(str(tiny_base), str(tmp_path / "run"), "aot_eager", module=(str(SCRIPT),), PYTHONPATH=path)
    assert ended.returncode == 0, ended.stderr[-4000:]
    kinds = 2  # double and single blocks
    assert json.loads(ended.stdout.splitlines()[-1]) == {"probe": [kinds, kinds], "step": [kinds] * 3}
