"""The datamodule that every task shares: loaders over a source, counting of damaged samples, fixed probe pairs."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import lightning as L
import numpy as np
import torch
from torch.utils.data import DataLoader

from datamodules.samples import Damage, LoadedBatch, Sample, choose_caption, collate, words_of
from datamodules.sources.pool import Pairs, batches_of
from datamodules.stream import PairLoader, SampleOrder, Size
from dsd_lightning.cli.signals import sigterm_ends_at_once
from dsd_lightning.miniature.world import Identity
from dsd_lightning.module import DiffusionSelfDistillation
from dsd_lightning.pairs import SURPLUS, Pair, PairBatch, Task

log = logging.getLogger(__name__)


class DamagedDataError(RuntimeError):
    """More samples were unreadable than the configuration tolerates."""


class Source(Protocol):
    """A source of pairs: the miniature world, or pair shards.

    Attributes:
        workers: processes that read ahead (0 reads in the training process).
        max_damaged: unreadable samples tolerated in a run.
        resolution: (height, width) of a frame, pixels.
        buckets: (height, width) of several frame sizes instead, or None.
    """

    workers: int
    max_damaged: int
    resolution: Size
    buckets: Sequence[Size] | None

    @property
    def encodes(self) -> bool:
        """Whether opening needs the module on its device, because pairs are stored as its encodings."""
        ...

    def training(self, data: PairData) -> Any:
        """Return the training dataset: (epoch, index) gives `Sample` or `Damage`, `bucket(index)` the frame's size."""
        ...

    def validation(self, data: PairData) -> Any:
        """Return the validation dataset, of the same kind; its samples are never trained on."""
        ...

    def probes(self, data: PairData, count: int) -> Pairs | None:
        """Return `count` fixed pairs with images that are never trained on; fewer or None where there are none."""
        ...


class PairData(L.LightningDataModule):
    """Pairs of one task from one source.

    Args:
        task: the relation of reference and target.
        source: of the pairs.
        batch_size: samples a step, over all devices and before accumulation.
        seed: of the order, the crops and the choice of captions.
    """

    def __init__(self, task: Task, source: Source, batch_size: int, seed: int) -> None:
        super().__init__()
        if batch_size < 1:
            raise ValueError(f"data.datamodule.batch_size={batch_size} must be at least 1")
        self.task, self.source, self.batch_size, self.seed = task, source, batch_size, seed
        self.damaged: set[str] = set()
        self._training: Any = None
        self._validation: Any = None
        self._probes: Pairs | None = None

    @property
    def resolution(self) -> Size:
        """(height, width) of a frame, pixels."""
        return self.source.resolution

    @property
    def sizes(self) -> Sequence[Size]:
        """Every (height, width) that frames may have, pixels."""
        return self.source.buckets or [self.source.resolution]

    def miniature_pair(self, identity: Identity, rng: np.random.Generator, key: str) -> Pair:
        """Draw this task's pair of an identity of the miniature world."""
        raise ValueError(f"task={self.task.name} has no miniature pairs; choose data=shards data.root=FOLDER")

    def trained_module(self) -> DiffusionSelfDistillation:
        """Return the module that is trained on these pairs.

        Raises:
            TypeError: outside of training.
        """
        module = self.trainer.lightning_module if self.trainer is not None else None
        if not isinstance(module, DiffusionSelfDistillation):
            raise TypeError("encodings belong to the module that trains on them; without one, use images")
        return module

    def setup(self, stage: str) -> None:
        """Open the source, so that bad data is refused early; a pool of encodings waits for the training device."""
        if stage == "fit" and not self.source.encodes:
            self._open()

    def _open(self) -> None:
        if self._training is None:
            with sigterm_ends_at_once(self.trainer):
                self._training = self.source.training(self)
                self._validation = self.source.validation(self)

    # --- Loaders.

    def train_dataloader(self) -> PairLoader:
        """Return the loader of the complete run; it resumes at any batch.

        Raises:
            ValueError: if the run's length is not given, or the batch cannot be divided among the devices.
        """
        trainer = self.trainer
        assert trainer is not None
        self._open()
        if trainer.max_steps < 1:
            raise ValueError("trainer.max_steps must be given: a run's length is counted in optimizer steps")
        if self.batch_size % trainer.world_size:
            raise ValueError(
                f"data.datamodule.batch_size={self.batch_size} is not divisible by the {trainer.world_size} devices; it "
                "counts the samples of all devices"
            )
        order = SampleOrder(
            [self._training.bucket(i) for i in range(len(self._training))],
            self.batch_size,
            self.resolution,
            self.seed,
            trainer.world_size,
        )
        return PairLoader(
            self._training,
            order,
            batches=trainer.max_steps * trainer.accumulate_grad_batches,
            rank=trainer.global_rank,
            world_size=trainer.world_size,
            collate_fn=collate,
            num_workers=self.source.workers,
            persistent_workers=False,
            pin_memory=self._on_cuda(),
        )

    def val_dataloader(self) -> DataLoader[LoadedBatch] | list[Any]:
        """Return this device's share of fixed batches that are never trained on.

        All devices get equally many, since the forward pass of a sharded model is collective; those that are filled up with are
        not counted (`SURPLUS`).
        """
        self._open()
        if len(self._validation) == 0:
            return []
        trainer = self.trainer
        assert trainer is not None
        size = max(1, self.batch_size // trainer.world_size)
        shares = [self._validation_batches(rank, trainer.world_size, size) for rank in range(trainer.world_size)]
        batches = shares[trainer.global_rank]
        batches += [[(SURPLUS, 0)]] * (max(map(len, shares)) - len(batches))
        return DataLoader(
            self._validation,
            batch_sampler=batches,
            collate_fn=collate,
            num_workers=min(1, self.source.workers),
            pin_memory=self._on_cuda(),
        )

    def _on_cuda(self) -> bool:
        return self.trainer is not None and self.trainer.strategy.root_device.type == "cuda"

    def _validation_batches(self, rank: int, world_size: int, size: int) -> list[list[tuple[int, int]]]:
        """Return the batches of `size` samples of a device, each of frames of one size."""
        by_size: dict[Size, list[tuple[int, int]]] = {}
        for index in range(rank, len(self._validation), world_size):
            by_size.setdefault(self._validation.bucket(index), []).append((0, index))
        return [group[i : i + size] for group in by_size.values() for i in range(0, len(group), size)]

    def on_before_batch_transfer(self, batch: LoadedBatch | PairBatch, dataloader_idx: int) -> PairBatch:
        """Count and report the samples that could not be read.

        Raises:
            DamagedDataError: when there are more than `data.datamodule.source.max_damaged`.
        """
        if isinstance(batch, PairBatch):
            return batch
        for damage in batch.damages:
            if damage.key not in self.damaged:
                self.damaged.add(damage.key)
                log.warning("skipped %s: %s (%d skipped so far)", damage.key, damage.reason, len(self.damaged))
        if batch.damages:
            last = batch.damages[-1]
            self._require_few(f"the last was {last.key}: {last.reason}")
        return batch.pairs

    def _require_few(self, detail: str) -> None:
        if len(self.damaged) > self.source.max_damaged:
            raise DamagedDataError(
                f"{len(self.damaged)} samples could not be used, more than data.datamodule.source.max_damaged="
                f"{self.source.max_damaged}; {detail}. Check the shards with `python -m dsd_lightning.shards verify FOLDER`, "
                "or raise the limit"
            )

    def transfer_batch_to_device(self, batch: Any, device: Any, dataloader_idx: int) -> Any:
        """Move the tensors of a batch, without waiting for those in page-locked memory."""
        return batch.to(device, non_blocking=True)

    def state_dict(self) -> dict[str, list[str]]:
        """Return the keys of the samples that were damaged on any device, and count them all from here on.

        Raises:
            DamagedDataError: on all devices, when there are more than `data.datamodule.source.max_damaged`.
        """
        if self.trainer is not None and self.trainer.world_size > 1:
            by_device: list[set[str]] = [set()] * self.trainer.world_size
            torch.distributed.all_gather_object(by_device, self.damaged)
            self.damaged = {key for keys in by_device for key in keys}
            self._require_few(f"of all devices, one is {min(self.damaged)}" if self.damaged else "")
        return {"damaged": sorted(self.damaged)}

    def load_state_dict(self, state_dict: dict[str, list[str]]) -> None:
        """Go on counting."""
        self.damaged = set(state_dict["damaged"])

    # --- Fixed pairs for images and metrics.

    def probe_batches(self, count: int, batch_size: int) -> Iterator[PairBatch]:
        """Yield up to `count` fixed pairs with images, in batches; the same ones in every run and at every step."""
        if self._probes is None or len(self._probes) < count:
            self._probes = self.source.probes(self, count)
        if self._probes is None:
            return
        available = min(count, len(self._probes))
        for indices in batches_of(self._probes, batch_size):
            samples: list[Sample | Damage] = []
            for index in indices:
                if index < available:
                    pair = self._probes[index]
                    # By the task's odds; apart from the run's seed, so that the prompts are the same in every run, too.
                    words = words_of(pair, choose_caption(self.task, pair, 0, 0))
                    samples.append(Sample(pair.key, 0, words, pair.reference, pair.target, facts=pair.facts))
            if samples:
                yield collate(samples).pairs
