"""A process that prepares its data ends at SIGTERM, whenever that arrives."""

from __future__ import annotations

import os
import signal
from types import SimpleNamespace
from typing import Any

import pytest

from datamodules.base import PairData
from dsd_lightning.cli.signals import sigterm_ends_at_once
from dsd_lightning.pairs import Task


class _Source:
    """A source during whose opening SIGTERM arrives."""

    workers, max_damaged, resolution, buckets, encodes = 0, 0, (64, 64), None, True

    def __init__(self, split: str) -> None:
        self.split = split

    def training(self, data: PairData) -> Any:
        return self._open("training")

    def validation(self, data: PairData) -> Any:
        return self._open("validation")

    def probes(self, data: PairData, count: int) -> None:
        return None

    def _open(self, split: str) -> list[Any]:
        if split == self.split:
            os.kill(os.getpid(), signal.SIGTERM)
        return []


@pytest.fixture(autouse=True)
def _lightnings_handler() -> Any:
    """Notices SIGTERM and goes on, as Lightning's handler does until the first training step."""
    before = signal.signal(signal.SIGTERM, lambda number, frame: None)
    yield
    signal.signal(signal.SIGTERM, before)


@pytest.mark.parametrize("split", ["training", "validation"])
def test_sigterm_ends_the_process_while_a_source_is_opened(split: str) -> None:
    data = PairData(
        Task("identity", aligned=False, frame_weights={"reference": 1.0, "target": 1.0}),
        _Source(split),
        batch_size=1,
        seed=0,
    )
    handler = signal.getsignal(signal.SIGTERM)
    with pytest.raises(SystemExit, match="143"):
        data._open()
    assert signal.getsignal(signal.SIGTERM) is handler


def test_a_sigterm_that_the_trainer_received_before_counts() -> None:
    trainer: Any = SimpleNamespace(received_sigterm=True)
    with pytest.raises(SystemExit, match="143"), sigterm_ends_at_once(trainer):
        pytest.fail("the block was entered")
