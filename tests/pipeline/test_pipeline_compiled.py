"""Compiled blocks generate the same images, each kind of block is compiled once, and step caches work on top of them."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from support.commands import ROOT, run

from dsd_lightning.flux.step_cache import StepCacheError
from dsd_lightning.pipeline import TwoFramePipeline

SCRIPT = Path(__file__).with_name("compiled_generation.py")
BLOCKS = 6
"""Of the shipped miniature's transformer, of two kinds."""


def generate(backend: str, cache: str) -> dict[str, Any]:
    path = os.pathsep.join([str(ROOT), str(SCRIPT.parents[1])])
    ran = run(backend, cache, module=(str(SCRIPT),), PYTHONPATH=path)
    assert ran.returncode == 0, ran.stderr
    result: dict[str, Any] = json.loads(ran.stdout)
    return result


@pytest.mark.slow
@pytest.mark.parametrize(
    ("backend", "cache"),
    [
        ("eager", "first_block:0.2"),  # dynamo's part, without a compiler
        pytest.param("inductor", "", marks=pytest.mark.long),
        pytest.param("inductor", "first_block:0.2", marks=pytest.mark.long),
        pytest.param("inductor", "taylor_seer_lite:2", marks=pytest.mark.long),
    ],
)
def test_each_kind_of_block_is_compiled_once_and_computes_the_same(backend: str, cache: str) -> None:
    result = generate(backend, cache)
    first, second = result["graphs"]
    assert 0 < first <= BLOCKS // 2, "blocks of one kind share their graph, up to one for inputs of another layout"
    assert second == 0, "the second image compiles nothing"
    assert result["difference"] < 1e-3


def test_what_works_inside_of_blocks_is_refused_beside_compiled_ones() -> None:
    with pytest.raises(StepCacheError, match=r"step_cache=taylor_seer:5 works inside of the blocks.*taylor_seer_lite"):
        TwoFramePipeline.tiny(device="cpu", compile=True, step_cache="taylor_seer")
