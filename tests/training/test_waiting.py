"""No step waits for the device, but for the one decision whether it is left out; steps that are logged fetch their metrics.

On a CPU nothing waits. What would is seen all the same: a value that Python reads from a tensor is an operation of its own, and
so is a selection whose size depends on values.
"""

from __future__ import annotations

import traceback
from collections import Counter
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from support.commands import ROOT, SOURCE, compose_train
from support.presets import sizes, write_encoded
from torch.utils._python_dispatch import TorchDispatchMode

from callbacks.nonfinite import NonFiniteGuard
from dsd_lightning.training.run import train

READS = {
    torch.ops.aten._local_scalar_dense.default,
    torch.ops.aten.equal.default,
    torch.ops.aten.masked_select.default,
    torch.ops.aten.nonzero.default,
}
"""Operations after which Python holds a value, or a size, that the device has computed."""

ON_THE_CPU = ("/torch/optim/", "/datamodules/")
"""Who reads values that are in the CPU's memory on any machine: an optimizer its count of steps, a loader its pairs."""


class Reads(TorchDispatchMode):
    """Counts reads by where in the project they come from, while `noting`."""

    def __init__(self) -> None:
        super().__init__()
        self.noting = False
        self.places: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        by_mask = func is torch.ops.aten.index.Tensor and any(
            each is not None and each.dtype in (torch.bool, torch.uint8) for each in args[1]
        )
        if self.noting and (func in READS or by_mask):
            self.places[place(traceback.extract_stack())] += 1
        return func(*args, **(kwargs or {}))


def place(stack: traceback.StackSummary) -> str:
    """Return the innermost line of the project that a call comes from, and the library's line if that made it."""
    own = (__file__, "/torch/utils/", "/torch/_dynamo/", "/torch/_compile")  # how an operation reaches `Reads`
    inner = next(frame for frame in reversed(stack) if not any(name in frame.filename for name in own))
    if any(name in inner.filename for name in ON_THE_CPU):
        return "on the CPU"
    mine = [frame for frame in stack if Path(frame.filename).is_relative_to(ROOT / "callbacks")]
    mine += [frame for frame in stack if Path(frame.filename).is_relative_to(ROOT / "dsd_lightning")]
    frame = next((frame for frame in reversed(stack) if frame in mine), inner)
    return f"{Path(frame.filename).name}: {frame.line}" + (
        "" if frame == inner else f" / {Path(inner.filename).name}: {inner.line}"
    )


class NoteSteps(L.Callback):
    """Lets reads be noted in the steps that are not logged: from the third to the last but one."""

    def __init__(self, reads: Reads) -> None:
        self.reads, self.steps = reads, 0

    def on_train_batch_start(self, trainer: L.Trainer, *_: Any) -> None:
        self.reads.noting = 2 <= trainer.global_step < trainer.max_steps - 1
        self.steps += self.reads.noting

    def on_train_end(self, *_: Any) -> None:
        self.reads.noting = False


@pytest.mark.slow
def test_a_step_reads_one_value_from_the_device(
    tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shards = write_encoded(tiny_base, tmp_path / "shards")
    config = compose_train(
        tmp_path / "run",
        "experiment=flux_80gb",
        *sizes(tiny_base, shards),
        f"{SOURCE}.workers=0",
        "callbacks.samples=null",
        "callbacks.checkpoint.every_n_steps=100",
        "trainer.val_check_interval=100",
        "trainer.log_every_n_steps=100",
        "trainer.max_steps=6",
        "dropout.text=0.5",
        "dropout.reference=0.5",
        "dropout.both=0.0",
        as_it_is=True,
    )
    reads = Reads()
    note = NoteSteps(reads)
    monkeypatch.setattr(NonFiniteGuard, "on_train_batch_start", _first(note, NonFiniteGuard.on_train_batch_start))
    monkeypatch.setattr(NonFiniteGuard, "on_train_end", note.on_train_end, raising=False)
    with reads:
        train(config, tmp_path / "run")
    assert note.steps == 3
    reads.places.pop("on the CPU", None)
    assert sum(reads.places.values()) == note.steps, reads.places
    (only,) = reads.places
    assert only.startswith("nonfinite.py: self._skipping = bool("), only


def _first(note: NoteSteps, then: Any) -> Any:
    """Return a hook that calls that of `note` and then another one."""

    def both(self: Any, trainer: L.Trainer, *rest: Any) -> None:
        note.on_train_batch_start(trainer)
        then(self, trainer, *rest)

    return both


def test_a_batch_is_copied_from_page_locked_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    from datamodules.samples import LoadedBatch
    from dsd_lightning.compute.device import sent
    from dsd_lightning.pairs import Encoded, PairBatch, TextEmbeddings

    pinned: list[torch.Tensor] = []
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda self: pinned.append(self) or self)
    batch = PairBatch(
        ["a"],
        [0],
        [""],
        encoded=Encoded(torch.zeros(1, 4, 2, 2), {"canvas": torch.zeros(1, 4, 2, 2)}),
        text=TextEmbeddings(torch.zeros(1, 3, 2), torch.zeros(1, 2)),
        mask=torch.ones(1, 1, 2, 2),
    )
    # What `DataLoader(pin_memory=True)` calls.
    assert LoadedBatch(batch).pin_memory().pairs.keys == ["a"]
    assert len(pinned) == 5
    asked: list[bool] = []
    to = torch.Tensor.to

    def noting(self: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        asked.append(bool(kwargs.get("non_blocking")))
        return to(self, "cpu")

    monkeypatch.setattr(torch.Tensor, "to", noting)
    batch.to(torch.device("cpu"), non_blocking=True)
    assert asked == [True] * 5
    sent(torch.zeros(2), torch.device("cuda"))
    assert asked[-1]
    assert len(pinned) == 6
