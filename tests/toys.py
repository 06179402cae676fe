"""Which models have a velocity that can be written down? Architectures for tests whose right answers need no network."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from dsd_lightning.architectures.base import State
from dsd_lightning.architectures.parallel import Parallel
from dsd_lightning.architectures.text_only import TextOnly
from dsd_lightning.pairs import Condition, TextEmbeddings

Field = Callable[[Tensor, Tensor, Condition], Tensor]
"""A velocity: (noisy canvas, timesteps, condition) -> canvas."""


class _Toy:
    """Computes a given field, and notes for each evaluation whether it saw the text and the reference."""

    def _set(self, field: Field) -> None:
        self.field, self.evaluations, self.preparations = field, [], 0

    def prepare(self, condition: Condition) -> State:
        self.preparations += 1
        return {}

    def null_reference(self, reference: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        return {name: torch.zeros_like(value) for name, value in reference.items()}

    def forward(self, noisy: Tensor, timestep: Tensor, condition: Condition, state: State | None = None) -> Tensor:
        reference = condition.reference.get("canvas")
        self.evaluations.append(
            (float(timestep[0]), bool(condition.text.sequence.any()), reference is not None and bool(reference.any()))
        )
        return self.field(noisy, timestep, condition)


class ToyTwoFrames(_Toy, Parallel):
    """Frames as those of `parallel`; no transformer."""

    def __init__(self, field: Field) -> None:
        nn.Module.__init__(self)
        self._set(field)


class ToyOneFrame(_Toy, TextOnly):
    """The target alone; no transformer."""

    def __init__(self, field: Field) -> None:
        nn.Module.__init__(self)
        self._set(field)


def text_of(value: float, batch: int = 2) -> TextEmbeddings:
    return TextEmbeddings(torch.full((batch, 3, 4), value), torch.full((batch, 4), value))


NULL_TEXT = text_of(0.0, batch=1)
