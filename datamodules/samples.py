"""Samples as datasets return them, and their collation into batches."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from dsd_lightning.pairs import Encoded, Pair, PairBatch, Task, TextEmbeddings
from dsd_lightning.randomness import uniform


@dataclass(frozen=True)
class Sample:
    """One sample of an epoch: a pair whose prompt has been chosen, as images or as encodings (of batch size 1)."""

    key: str
    epoch: int
    prompt: str
    reference: Float[Tensor, "3 h w"] | None = None
    target: Float[Tensor, "3 h w"] | None = None
    encoded: Encoded | None = None
    text: TextEmbeddings | None = None
    facts: Mapping[str, Any] = field(default_factory=dict)
    mask: Float[Tensor, "1 m n"] | None = None


@dataclass(frozen=True)
class Damage:
    """A sample that could not be used: its key, the reason, and another one of its size that replaces it."""

    key: str
    reason: str
    instead: Sample | None = None


@dataclass(frozen=True)
class LoadedBatch:
    """A batch, and the samples in it that were replaced."""

    pairs: PairBatch
    damages: tuple[Damage, ...] = ()

    def pin_memory(self) -> LoadedBatch:
        """Return the same batch in page-locked memory; `DataLoader(pin_memory=True)` calls it."""
        return replace(self, pairs=self.pairs.pin_memory())


class UnreadableBatchError(RuntimeError):
    """No sample of a batch could be used, and there was none to replace it."""


def without_images(key: str, caption: str, instruction: str | None, facts: Mapping[str, Any]) -> Pair:
    """Return a pair with texts and facts, and images without pixels."""
    empty: Float[Tensor, "3 h w"] = torch.empty(3, 0, 0)
    return Pair(key, None, empty, caption, instruction, facts)


def choose_caption(task: Task, pair: Pair, seed: int, epoch: int) -> str:
    """Return the caption kind ("caption" or "instruction") of a sample in an epoch, by the task's odds."""
    if pair.instruction is None:
        return "caption"
    draw, total = uniform(seed, epoch, pair.key, "caption"), 0.0
    for kind, odds in task.captions.items():
        total += odds
        if draw < total:
            return kind
    return list(task.captions)[-1]


def words_of(pair: Pair, kind: str) -> str:
    """Return the text of a caption kind; a pair without an instruction has only its caption."""
    return pair.instruction if kind == "instruction" and pair.instruction is not None else pair.caption


def collate(samples: Sequence[Sample | Damage]) -> LoadedBatch:
    """Stack the samples into a batch; damaged ones are replaced.

    Raises:
        UnreadableBatchError: if none is readable, naming the first reason.
    """
    damages = tuple(sample for sample in samples if isinstance(sample, Damage))
    usable = [sample.instead if isinstance(sample, Damage) else sample for sample in samples]
    kept = [sample for sample in usable if sample is not None]
    if not kept:
        raise UnreadableBatchError(
            f"none of {len(damages)} samples could be used; {damages[0].key}: {damages[0].reason}"
        )
    first = kept[0]
    encoded = text = None
    if first.encoded is not None:
        parts = [sample.encoded for sample in kept if sample.encoded is not None]
        encoded = Encoded(
            torch.cat([part.clean for part in parts]),
            {name: torch.cat([part.reference[name] for part in parts]) for name in first.encoded.reference},
        )
    if first.text is not None:
        texts = [sample.text for sample in kept if sample.text is not None]
        text = TextEmbeddings(torch.cat([each.sequence for each in texts]), torch.cat([each.pooled for each in texts]))
    references = [sample.reference for sample in kept if sample.reference is not None]
    targets = [sample.target for sample in kept if sample.target is not None]
    batch = PairBatch(
        keys=[sample.key for sample in kept],
        epochs=[sample.epoch for sample in kept],
        prompts=[sample.prompt for sample in kept],
        reference=torch.stack(references) if references else None,
        target=torch.stack(targets) if targets else None,
        encoded=encoded,
        text=text,
        facts=[sample.facts for sample in kept],
        mask=stacked_masks([sample.mask for sample in kept]),
    )
    return LoadedBatch(batch, damages)


def stacked_masks(masks: Sequence[Float[Tensor, "1 m n"] | None]) -> Float[Tensor, "b 1 m n"] | None:
    """Stack the masks, 1 everywhere for samples without one; None where no sample has one."""
    first = next((mask for mask in masks if mask is not None), None)
    if first is None:
        return None
    return torch.stack([torch.ones_like(first) if mask is None else mask for mask in masks])
