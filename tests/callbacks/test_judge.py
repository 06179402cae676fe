"""The judge's callback: every process generates the same batches, the first alone writes, asks and logs."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from PIL import Image

from callbacks import judge
from dsd_lightning.offline.benchmark import miniature


class Batches:
    """In the model's place: notes the batches that it is asked for."""

    def __init__(self) -> None:
        self.asked: list[list[str]] = []
        self.descriptions = 0

    def described(self) -> dict[str, Any]:
        self.descriptions += 1
        return {}

    def generate(self, cases: Any, references: list[Image.Image], seed: int) -> list[Image.Image]:
        self.asked.append([case.prompt.text for case in cases])
        return references


class Rank:
    """A process of two: what the first one broadcasts reaches the second."""

    sent: list[Any]

    def __init__(self, first: bool, sent: list[Any]) -> None:
        self.is_global_zero, self.global_step, self.strategy = first, 4, self
        self.sent, self.position = sent, 0

    def broadcast(self, value: Any) -> Any:
        if self.is_global_zero:
            self.sent.append(value)
            return value
        self.position += 1
        return self.sent[self.position - 1]


def test_all_processes_generate_and_the_first_judges(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(judge, "isolated_sampling", lambda *_, **__: nullcontext())
    monkeypatch.setattr(judge, "_pipeline", lambda *_: None)
    sent: list[Any] = []
    module: Any = SimpleNamespace(device=torch.device("cpu"))
    asked, judged = [], []
    for first in (True, False):
        model = Batches()
        monkeypatch.setattr(judge, "Model", lambda *_, model=model: model)
        benchmark = miniature(str(tmp_path / "benchmark"))
        probe = judge.JudgeProbe(SimpleNamespace(), benchmark, SimpleNamespace(), str(tmp_path / "judged"), subjects=1)  # type: ignore[arg-type]

        def end(trainer: Any, samples: Any, probe: judge.JudgeProbe = probe) -> None:
            judged.append(trainer.is_global_zero)
            probe.ended = True  # as when the budget is spent

        monkeypatch.setattr(probe, "_judge", end)
        probe.judge(Rank(first, sent), module)  # type: ignore[arg-type]
        assert probe.ended
        probe.judge(Rank(first, sent), module)  # type: ignore[arg-type]
        asked.append(model.asked)
        assert model.descriptions == 1, "the description reads sharded weights, which is collective"
    assert asked[0] == asked[1]
    assert sum(map(len, asked[0])) == 9
    assert judged == [True]
