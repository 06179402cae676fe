"""CUDA is prepared once a process, as the environment leaves it open; a small shared memory is named."""

from __future__ import annotations

from collections import namedtuple
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from dsd_lightning.compute import cuda
from dsd_lightning.compute.cuda import prepare_cuda, warn_of_small_shared_memory
from dsd_lightning.compute.machine import require_precision

Usage = namedtuple("Usage", "total used free")


@pytest.fixture(autouse=True)
def devices(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """Count two devices, and note which one a process takes."""
    taken: list[int] = []
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", taken.append)
    precision = torch.get_float32_matmul_precision()
    yield taken
    torch.set_float32_matmul_precision(precision)


@pytest.mark.parametrize(
    ("environment", "device"),
    [({}, []), ({"LOCAL_RANK": "1"}, [1]), ({"SLURM_LOCALID": "1"}, [1]), ({"LOCAL_RANK": "5"}, [])],
)
def test_each_process_takes_its_own_device(environment: dict[str, str], device: list[int], devices: list[int]) -> None:
    prepare_cuda(environment)
    assert devices == device
    assert torch.get_float32_matmul_precision() == "high"


@pytest.mark.parametrize("name", cuda.ALLOCATOR)
def test_a_configured_allocator_is_left_alone(name: str) -> None:
    environment = {name: "backend:native"}
    prepare_cuda(environment)
    assert environment == {name: "backend:native"}
    prepare_cuda(environment := {})
    assert environment == {"PYTORCH_ALLOC_CONF": "expandable_segments:True"}


@pytest.mark.parametrize(
    ("workers", "total", "warns"), [(4, 64 * 2**20, True), (0, 64 * 2**20, False), (4, 2**33, False)]
)
def test_a_small_shared_memory_is_named(
    workers: int,
    total: int,
    warns: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(cuda.shutil, "disk_usage", lambda place: Usage(total, 0, total))
    warn_of_small_shared_memory(workers, tmp_path)
    assert ("--shm-size" in caplog.text) == warns
    warn_of_small_shared_memory(workers, tmp_path / "absent")


def test_precisions_that_would_round_trained_values_are_refused() -> None:
    for allowed in ("bf16-mixed", "32-true", "bf16", 32):
        require_precision(allowed)
    for refused in ("bf16-true", "16-true", "16-mixed", "64-true"):
        with pytest.raises(ValueError, match=rf"trainer\.precision={refused}.*bf16-mixed"):
            require_precision(refused)
