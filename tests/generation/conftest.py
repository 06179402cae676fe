"""Loads the shipped miniature once for all tests of generation; `test_the_command_itself` loads it as the command does."""

from __future__ import annotations

import functools
from collections.abc import Iterator

import pytest

from dsd_lightning.pipeline import TwoFramePipeline


@pytest.fixture(scope="package", autouse=True)
def miniature_loaded_once() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(TwoFramePipeline, "tiny", functools.cache(TwoFramePipeline.tiny))
        yield
