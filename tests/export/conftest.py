"""Runs that several tests of the export read; none writes to them."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.exported_run import LORA, MadeRun, make_run


@pytest.fixture(scope="package")
def parallel(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> MadeRun:
    return make_run(tmp_path_factory.mktemp("parallel"), tiny_base, "arch=parallel", *LORA)


@pytest.fixture(scope="package")
def concat(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> MadeRun:
    return make_run(tmp_path_factory.mktemp("concat"), tiny_base, "arch=concat", *LORA)


@pytest.fixture(scope="package")
def reference_tokens(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> MadeRun:
    return make_run(tmp_path_factory.mktemp("reference_tokens"), tiny_base, "arch=reference_tokens", *LORA)


@pytest.fixture(scope="package")
def text_only(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> MadeRun:
    return make_run(tmp_path_factory.mktemp("text_only"), tiny_base, "arch=text_only", *LORA)
