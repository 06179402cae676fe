"""Keeps pairs in memory, sampled and encoded once, so that epochs cost no rendering and no VAE."""

from __future__ import annotations

import logging
import sys
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Protocol

import torch
from torch.utils.data import Dataset
from tqdm import tqdm

from datamodules.samples import Sample, choose_caption, without_images, words_of
from datamodules.stream import Draw, Size
from dsd_lightning.module import DiffusionSelfDistillation
from dsd_lightning.pairs import Encoded, Pair, Task, TextEmbeddings

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Chunk:
    """Encodings of some pairs of one size."""

    encoded: Encoded
    text: dict[str, TextEmbeddings]


class Pairs(Protocol):
    """Pairs by number, and how many there are."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Pair: ...


class EncodedPool(Dataset[Sample]):
    """Encodings of `pairs` under a module's architecture, VAE and text encoders.

    Args:
        pairs: to be encoded; their images are dropped afterwards, their texts and facts stay.
        module: gives architecture, codec and text encoder, on the device where the encoding is done, in the precision of
            its trainer, if it has one.
        task: gives the caption kinds.
        seed: of the choice of the caption kind.
        text_lengths: T5 length by image size, where it differs from the text encoder's own.
    """

    def __init__(
        self,
        pairs: Pairs,
        module: DiffusionSelfDistillation,
        task: Task,
        seed: int,
        text_lengths: dict[Size, int] | None = None,
        chunk: int = 64,
    ) -> None:
        self.task, self.seed, self.chunk = task, seed, chunk
        self.pairs: list[Pair] = []
        self.sizes: list[Size] = []
        self.chunks: list[_Chunk] = []
        self.places: list[tuple[int, int]] = []
        count = len(pairs)
        waiting: dict[Size, list[int]] = {}
        self.places = [(-1, -1)] * count
        held: dict[int, Pair] = {}
        log.info("encoding %d pairs once, before training", count)
        shown = tqdm(total=count, desc="encoding pairs", unit="pair", leave=False, disable=not sys.stderr.isatty())
        with module.encoders_at_work(), shown as bar:
            for index in range(count):
                pair = pairs[index]
                size = (pair.target.shape[-2], pair.target.shape[-1])
                held[index] = pair
                self.sizes.append(size)
                self.pairs.append(without_images(pair.key, pair.caption, pair.instruction, pair.facts))
                waiting.setdefault(size, []).append(index)
                if len(waiting[size]) == chunk:
                    self._encode(waiting.pop(size), held, module, (text_lengths or {}).get(size))
                bar.update()
            for size, indices in waiting.items():
                self._encode(indices, held, module, (text_lengths or {}).get(size))

    def _encode(
        self, indices: list[int], held: dict[int, Pair], module: DiffusionSelfDistillation, text_length: int | None
    ) -> None:
        pairs = [held.pop(index) for index in indices]
        device = module.device
        references = [pair.reference for pair in pairs if pair.reference is not None]
        reference = torch.stack(references).to(device) if references else None
        target = torch.stack([pair.target for pair in pairs]).to(device)
        trainer = module._trainer
        with trainer.precision_plugin.forward_context() if trainer is not None else nullcontext():
            encoded = module.architecture.encode(reference, target, module.codec).to(torch.device("cpu"))
        text = {}
        for kind in self.task.captions:
            words = [words_of(pair, kind) for pair in pairs]
            text[kind] = module.text_encoder.encode(words, sequence_length=text_length).to(torch.device("cpu"))
        for row, index in enumerate(indices):
            self.places[index] = (len(self.chunks), row)
        self.chunks.append(_Chunk(encoded, text))

    def __len__(self) -> int:
        return len(self.pairs)

    def bucket(self, index: int) -> Size:
        """Return (height, width) of sample `index`, pixels."""
        return self.sizes[index]

    def __getitem__(self, draw: Draw) -> Sample:
        epoch, index = draw
        pair = self.pairs[index]
        kind = choose_caption(self.task, pair, self.seed, epoch)
        number, row = self.places[index]
        chunk = self.chunks[number]
        text, one = chunk.text[kind], slice(row, row + 1)
        return Sample(
            key=pair.key,
            epoch=epoch,
            prompt=words_of(pair, kind),
            encoded=Encoded(chunk.encoded.clean[one], {k: v[one] for k, v in chunk.encoded.reference.items()}),
            text=TextEmbeddings(text.sequence[one], text.pooled[one]),
            facts=pair.facts,
        )


class ImagePairs(Dataset[Sample]):
    """Pairs as images, encoded again in every step; for small sets and for tests of the encoding itself."""

    def __init__(self, pairs: Pairs, task: Task, seed: int) -> None:
        self.pairs, self.task, self.seed = pairs, task, seed

    def __len__(self) -> int:
        return len(self.pairs)

    def bucket(self, index: int) -> Size:
        """Return (height, width) of sample `index`, pixels."""
        target = self.pairs[index].target
        return target.shape[-2], target.shape[-1]

    def __getitem__(self, draw: Draw) -> Sample:
        epoch, index = draw
        pair = self.pairs[index]
        kind = choose_caption(self.task, pair, self.seed, epoch)
        return Sample(pair.key, epoch, words_of(pair, kind), pair.reference, pair.target, facts=pair.facts)


def batches_of(dataset: Pairs, size: int) -> list[list[int]]:
    """Return the indices of `dataset` in consecutive groups of at most `size`."""
    count = len(dataset)
    return [list(range(start, min(start + size, count))) for start in range(0, count, size)]
