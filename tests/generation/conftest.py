"""Loads the shipped miniature once for all tests of generation, and gives them a reference image.

`test_the_command_itself` loads the model as the command does.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dsd_lightning.pipeline import TwoFramePipeline


@pytest.fixture(scope="package", autouse=True)
def miniature_loaded_once() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(TwoFramePipeline, "tiny", functools.cache(TwoFramePipeline.tiny))
        yield


@pytest.fixture
def without_keys(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("GEMINI_API_KEY", "OPENAI_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)  # answers are cached below


@pytest.fixture
def image(tmp_path: Path) -> Path:
    values = np.random.default_rng(0).integers(0, 256, (6, 9, 3), dtype=np.uint8)
    Image.fromarray(values).resize((90, 60)).save(tmp_path / "a.png")
    return tmp_path / "a.png"
