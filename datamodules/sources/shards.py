"""Pair shards as a source: real images of any size, cropped to the resolution or to buckets, never enlarged."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from jaxtyping import Float
from torch import Tensor
from torch.utils.data import Dataset

from datamodules.base import PairData
from datamodules.encodings import MASK, encoded_of, encodings_key, text_of
from datamodules.samples import Damage, Sample, choose_caption, without_images, words_of
from datamodules.sources.pool import Pairs
from datamodules.stream import Draw, Size
from dsd_lightning.images.pixels import bucket_for, covering_size, to_pixels
from dsd_lightning.pairs import REFERENCE, TARGET, Pair, Task
from dsd_lightning.randomness import uniform
from dsd_lightning.shards import DamagedSample, PairShards
from dsd_lightning.shards.catalogue import Verification
from dsd_lightning.shards.split import first_by_hash, split_pairs

log = logging.getLogger(__name__)


class ShardPairs(Dataset[Sample | Damage]):
    """Some samples of pair shards as pairs of one task; a damaged one comes back as `Damage`, it is not raised.

    The next readable sample of the same size comes with it, so that a batch is as large as it should be.

    Args:
        shards: the shards; opened with an encoding key they give encodings, and otherwise images.
        positions: of the samples.
        buckets: each sample's (height, width), pixels.
        task: decides whether both images share their crop, and the kind of caption.
        seed: of crops and captions.
        crop: "random" moves with the epoch, "center" does not.
    """

    def __init__(
        self,
        shards: PairShards,
        positions: Sequence[int],
        buckets: Sequence[Size],
        task: Task,
        seed: int,
        crop: str,
    ) -> None:
        self.shards, self.positions, self.buckets = shards, positions, buckets
        self.task, self.seed, self.crop = task, seed, crop

    def __len__(self) -> int:
        return len(self.positions)

    def bucket(self, index: int) -> Size:
        """Return (height, width) to which sample `index` is cropped, pixels."""
        return self.buckets[index]

    def __getitem__(self, draw: Draw) -> Sample | Damage:
        epoch, index = draw
        sample = self._draw(epoch, index)
        if isinstance(sample, Damage):
            following = ((index + step) % len(self) for step in range(1, len(self)))
            same_size = (self._draw(epoch, other) for other in following if self.buckets[other] == self.buckets[index])
            return replace(sample, instead=next((other for other in same_size if isinstance(other, Sample)), None))
        return sample

    def _draw(self, epoch: int, index: int) -> Sample | Damage:
        if self.shards.encoding_key is not None:
            return self._stored(epoch, index)
        pair = self.pair_or_damage(index, epoch)
        if isinstance(pair, Damage):
            return pair
        kind = choose_caption(self.task, pair, self.seed, epoch)
        words = words_of(pair, kind)
        return Sample(pair.key, epoch, words, pair.reference, pair.target, facts=pair.facts, mask=pair.mask)

    def _stored(self, epoch: int, index: int) -> Sample | Damage:
        """Return a sample as its stored encodings; no image is read."""
        position = self.positions[index]
        try:
            record, (encoded, text) = self.shards.record(position), self.shards.encodings(position)
        except DamagedSample as damage:
            return Damage(self.shards.keys[position], f"{damage.shard}: {damage.reason}")
        pair = without_images(self.shards.keys[position], record.caption, record.instruction, record.facts)
        kind = choose_caption(self.task, pair, self.seed, epoch)
        if encoded is None or text is None:
            return Damage(pair.key, f"{self.shards.shard_name(position)}: it has no encodings")
        return Sample(
            pair.key,
            epoch,
            words_of(pair, kind),
            encoded=encoded_of(encoded),
            text=text_of(text, kind),
            facts=pair.facts,
            mask=encoded.get(MASK),
        )

    def pair_or_damage(self, index: int, epoch: int) -> Pair | Damage:
        """Return a sample as a pair of crops, or its damage."""
        try:
            return self.pair(index, epoch)
        except DamagedSample as damage:
            return Damage(damage.key, f"{damage.shard}: {damage.reason}")
        except ValueError as error:
            return Damage(self.shards.keys[self.positions[index]], str(error))

    def pair(self, index: int, epoch: int) -> Pair:
        """Return a sample as a pair of crops.

        Raises:
            DamagedSample: if it cannot be read.
            ValueError: if one of its images is too small, or both must show the same pixels and differ in shape.
        """
        raw = self.shards[self.positions[index]]
        height, width = self.buckets[index]
        if self.task.aligned and raw.reference is not None:
            covering = [covering_size(image.size, height, width) for image in (raw.reference, raw.target)]
            # A pixel may be the rounding of two sizes of one shape.
            if max(abs(one - other) for one, other in zip(*covering, strict=True)) > 1:
                raise ValueError(
                    f"task={self.task.name} needs a reference and a target of one shape, but they have {raw.reference.size} "
                    f"and {raw.target.size} pixels (width, height)"
                )

        if raw.mask is not None and raw.mask.size != raw.target.size:
            raise ValueError(
                f"its mask has {raw.mask.size} pixels (width, height), but its target {raw.target.size}; they must agree"
            )

        def crop(image: Any, frame: str) -> Float[Tensor, "3 h w"]:
            shared = TARGET if self.task.aligned else frame
            at = [
                uniform(self.seed, epoch, raw.key, shared, "crop", axis) if self.crop == "random" else 0.5
                for axis in ("down", "across")
            ]
            return to_pixels(image, height, width, crop=(at[0], at[1]))

        return Pair(
            key=raw.key,
            reference=None if raw.reference is None else crop(raw.reference, REFERENCE),
            target=crop(raw.target, TARGET),
            caption=raw.caption,
            instruction=raw.instruction,
            facts=raw.facts or {},
            mask=None if raw.mask is None else (crop(raw.mask, TARGET)[:1] + 1) / 2,
        )


class _Fixed(Dataset[Pair]):
    """The first readable pairs of a dataset, cropped in the middle."""

    def __init__(self, pairs: ShardPairs, count: int) -> None:
        self.pairs: list[Pair] = []
        for index in range(len(pairs)):
            if len(self.pairs) == count:
                break
            # Images of one size: a sheet shows them side by side.
            if pairs.bucket(index) != pairs.bucket(0):
                continue
            try:
                self.pairs.append(pairs.pair(index, 0))
            except (DamagedSample, ValueError) as error:
                log.warning("left out of the sample sheets: %s", error)

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> Pair:
        return self.pairs[index]


@dataclass
class Shards:
    """Pair shards in a folder.

    Attributes:
        root: folder with the tars (and `index.json`).
        resolution: (height, width) of a frame, pixels.
        buckets: (height, width) of several frame sizes instead; each pair goes to the one nearest in aspect ratio.
        validation_pairs: samples set aside and never trained on, at most a fifth (`shards.split.split_pairs`); or those of
            `validation_root`.
        crop: "random" or "center", position of the crop; encodings are of the centre.
        workers: processes that decode ahead.
        max_damaged: unreadable samples tolerated in a run.
        verify: check of the files at start: "size", "sha256" or "off".
        validation_root: folder of another set for validation, such as one of other subjects; then all of `root` is
            trained on.
        encoded: train on the encodings that `datamodules.commands.encode_shards` stored, and read no images.
    """

    root: str | None
    resolution: Size
    buckets: Sequence[Size] | None
    validation_pairs: int
    crop: str
    workers: int
    max_damaged: int
    verify: Verification
    validation_root: str | None = None
    encoded: bool = False
    _opened: tuple[PairShards, list[int], list[int]] | None = field(default=None, init=False, repr=False)

    @property
    def encodes(self) -> bool:
        """Whether opening needs the module: stored encodings must be those of its encoders."""
        return self.encoded

    def __post_init__(self) -> None:
        if self.root is None:
            raise ValueError("data=shards needs the folder of the shards: data.root=FOLDER")
        self.resolution = (int(self.resolution[0]), int(self.resolution[1]))
        if self.buckets is not None:
            self.buckets = [(int(height), int(width)) for height, width in self.buckets]
        if self.crop not in ("random", "center"):
            raise ValueError(f"data.datamodule.source.crop={self.crop!r}: choose random or center")
        if self.workers < 0 or self.max_damaged < 0 or self.validation_pairs < 0:
            raise ValueError(
                f"data.datamodule.source.workers={self.workers}, max_damaged={self.max_damaged}, validation_pairs="
                f"{self.validation_pairs}: none may be negative"
            )

    def training(self, data: PairData) -> ShardPairs:
        """Return the samples that are trained on."""
        shards, training, _ = self._open(data)
        return self._pairs(data, shards, training, self.crop)

    def validation(self, data: PairData) -> ShardPairs:
        """Return the samples set aside."""
        if self.validation_root is not None:
            other = self._shards(data, self.validation_root)
            return self._pairs(data, other, first_by_hash(other, min(self.validation_pairs, len(other)))[0], "center")
        shards, _, validation = self._open(data)
        return self._pairs(data, shards, validation, "center")

    def probes(self, data: PairData, count: int) -> Pairs | None:
        """Return the first samples set aside."""
        return _Fixed(self.validation(data), count)

    def _open(self, data: PairData) -> tuple[PairShards, list[int], list[int]]:
        """Return the shards, read once, with the positions to train on and those set aside."""
        if self._opened is None:
            self._opened = self._read(data)
        return self._opened

    def _read(self, data: PairData) -> tuple[PairShards, list[int], list[int]]:
        assert self.root is not None
        shards = self._shards(data, self.root)
        split = split_pairs(shards, self.validation_pairs if self.validation_root is None else 0)
        if self.validation_root is None:
            log.info("%s: %s", self.root, split)
        return shards, split.training, split.validation

    def _shards(self, data: PairData, root: str) -> PairShards:
        key = None
        if self.encoded:
            module = data.trained_module()
            key = encodings_key(module.architecture, module.codec, module.text_encoder, data.sizes)
        shards = PairShards(
            root,
            task=data.task.name,
            encoding_key=key,
            require_reference=REFERENCE in data.task.frame_weights,
            verify=self.verify,
        )
        for problem in (*shards.damage, *shards.passed_over):
            log.warning("%s", problem)
        return shards

    def _pairs(self, data: PairData, shards: PairShards, positions: list[int], crop: str) -> ShardPairs:
        if self.buckets is None:
            return ShardPairs(shards, positions, [self.resolution] * len(positions), data.task, data.seed, crop)
        sizes = [(width, height) for height, width in self.buckets]
        kept: list[int] = []
        buckets: list[Size] = []
        for position in positions:
            try:
                width, height = bucket_for(*shards.target_size(position), sizes)
            except (DamagedSample, ValueError) as error:
                log.warning("left out: %s: %s", shards.keys[position], error)
                continue
            kept.append(position)
            buckets.append((height, width))
        return ShardPairs(shards, kept, buckets, data.task, data.seed, crop)
