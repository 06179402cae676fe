"""Reads pair shards by position: random access, so that a run resumes at exactly the next sample.

webdataset reads tars in sequence, and could not resume, shuffle or fill buckets exactly; hence a reader of our own.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from torch import Tensor

from dsd_lightning.images.pixels import ImageError, load_image, upright_size
from dsd_lightning.shards.catalogue import Verification, read_catalogue
from dsd_lightning.shards.format import PARTS, DamagedSample, SampleRecord

_OPEN_FILES = 64


@dataclass(frozen=True)
class RawPair:
    """One sample as it is stored: images of their own sizes, not yet cropped.

    Attributes:
        key: the sample's key, unique in the set.
        reference: the reference image, RGB, or I;16 (gray of 16 bits); None where the task has none.
        target: the target image, alike.
        caption: what the target shows.
        instruction: what to do to the reference to get the target, where there is such a sentence.
        provenance: the sample's origin.
        facts: plain integers for probes; empty for images from the world.
        encoded: encodings of the images by name; None unless `encoding_key` is given.
        text: embeddings of the caption by name; None unless `encoding_key` is given, or where there are none.
        mask: where the target shows its subject, white on black, of the target's size; None where there is none.
    """

    key: str
    reference: Image.Image | None
    target: Image.Image
    caption: str
    instruction: str | None
    provenance: dict[str, Any]
    facts: dict[str, Any]
    encoded: dict[str, Tensor] | None
    text: dict[str, Tensor] | None
    mask: Image.Image | None = None


class PairShards:
    """A set of pair shards as a sequence: `len(shards)`, `shards.keys`, `shards[position]`.

    The headers of all tars are read once, here; a sample is then read from its bytes alone. Samples are ordered by the
    tars' names and, within a tar, by their place. Picklable: a worker process opens its own files. A folder of webdataset
    tars without index.json is read too; then `index` is None and nothing can be verified.

    Args:
        root: the set's folder.
        task: refuse a set of another task; None accepts any.
        encoding_key: read the stored encodings and refuse those under another key; None leaves them unread.
        require_reference: refuse samples without a reference image.
        verify: compare the tars with index.json: their "size", their "sha256" (reads everything once), or "off".
        ignore_index: read the tars as though there were no index.json.

    Attributes:
        index: the content of index.json; None without one.
        keys: the samples' keys, by position.
        damage: one line for each tar that is damaged or not as the index says; its readable samples are kept.
        passed_over: one line for each tar with samples that cannot be read because of their names.
        dotted: number of these samples.

    Raises:
        ShardError: no set in `root`, or one that is still being written; another task or encoding key; a tar that is
            missing or in no index; a sample without a target, a record or another required part; a key used twice.
    """

    def __init__(
        self,
        root: str | Path,
        task: str | None = None,
        encoding_key: str | None = None,
        *,
        require_reference: bool = False,
        verify: Verification = "size",
        ignore_index: bool = False,
    ) -> None:
        self.root, self.task, self.encoding_key = Path(root), task, encoding_key
        required = ["reference"] if require_reference else []
        required += ["target", "record"] + (["encoded"] if encoding_key is not None else [])
        catalogue = read_catalogue(self.root, task, encoding_key, required, verify, ignore_index)
        self.paths, self.index, self.keys = catalogue.paths, catalogue.index, catalogue.keys
        self.damage, self.passed_over, self.dotted = catalogue.damage, catalogue.passed_over, catalogue.dotted
        self._shard_of, self._spans = catalogue.shard_of, catalogue.spans
        self._files: dict[int, int] = {}

    def __len__(self) -> int:
        return len(self.keys)

    def __iter__(self) -> Iterator[RawPair]:
        return (self[position] for position in range(len(self)))

    def __getitem__(self, position: int) -> RawPair:
        """Read one sample, encodings too where an encoding key was given.

        Raises:
            IndexError: no such position.
            DamagedSample: a part of it cannot be read; the others can.
            ShardError: its record has no caption.
        """
        record = self.record(position)
        target = self._image(position, "target")
        assert target is not None, "the scan keeps no sample without a target"
        encoded, text = self.encodings(position) if self.encoding_key is not None else (None, None)
        return RawPair(
            key=self.keys[position],
            reference=self._image(position, "reference"),
            target=target,
            caption=record.caption,
            instruction=record.instruction,
            provenance=dict(record.provenance),
            facts=dict(record.facts),
            encoded=encoded,
            text=text,
            mask=self._image(position, "mask"),
        )

    def record(self, position: int) -> SampleRecord:
        """Read only the texts of a sample. Raises as `shards[position]` does."""
        data = self._bytes(position, "record")
        assert data is not None, "the scan keeps no sample without a record"
        return SampleRecord.from_bytes(data, self.shard_name(position), self.keys[position])

    def encodings(self, position: int) -> tuple[dict[str, Tensor] | None, dict[str, Tensor] | None]:
        """Read only the (encoded, text) tensors of a sample; None for those that are not stored."""
        return self._tensors(position, "encoded"), self._tensors(position, "text")

    def shard_name(self, position: int) -> str:
        """Return the path of a sample's tar."""
        return str(self.paths[self._shard_of[position]])

    def sizes(self, position: int) -> dict[str, int]:
        """Return the bytes of each part that a sample has."""
        return {part: int(size) for part, (_, size) in zip(PARTS, self._spans[position], strict=True) if size >= 0}

    def stored_bytes(self, position: int, part: str) -> bytes | None:
        """Return the file of a sample's part ("reference", "target", ...); None where it has none.

        Raises:
            DamagedSample: it cannot be read.
        """
        return self._bytes(position, part)

    def target_bytes(self, position: int) -> bytes:
        """Return the file of a sample's target image.

        Raises:
            DamagedSample: it cannot be read.
        """
        data = self._bytes(position, "target")
        assert data is not None, "the scan keeps no sample without a target"
        return data

    def target_size(self, position: int) -> tuple[int, int]:
        """Return (width, height) of a sample's target image, upright, from its header alone.

        Raises:
            DamagedSample: the image cannot be read.
        """
        try:
            return upright_size(self.target_bytes(position))
        except ImageError as error:
            raise self._damaged(position, f"its target: {error}") from error

    def _image(self, position: int, part: str) -> Image.Image | None:
        data = self._bytes(position, part)
        try:
            return None if data is None else load_image(data)
        except ImageError as error:
            raise self._damaged(position, f"its {part}: {error}") from error

    def _tensors(self, position: int, part: str) -> dict[str, Tensor] | None:
        data = self._bytes(position, part)
        try:
            return None if data is None else load_tensors(data)
        except (SafetensorError, ValueError, KeyError) as error:
            raise self._damaged(position, f"its {part} tensors: {error}") from error

    def _damaged(self, position: int, reason: str) -> DamagedSample:
        return DamagedSample(self.shard_name(position), self.keys[position], reason)

    def _bytes(self, position: int, part: str) -> bytes | None:
        offset, size = map(int, self._spans[position, PARTS.index(part)])
        if size < 0:
            return None
        try:
            data = b""
            # One pread returns at most 2 GiB, and may return less.
            while len(data) < size and (more := os.pread(self._file(position), size - len(data), offset + len(data))):
                data += more
        except OSError as error:
            raise self._damaged(position, f"its {part}: {error}") from error
        if len(data) != size:
            raise self._damaged(position, f"its {part} breaks off after {len(data)} of {size} bytes")
        return data

    def _file(self, position: int) -> int:
        # pread has no file position of its own, so forked workers may share a descriptor.
        number = int(self._shard_of[position])
        if number not in self._files:
            while len(self._files) >= _OPEN_FILES:
                os.close(self._files.pop(next(iter(self._files))))
            self._files[number] = os.open(self.paths[number], os.O_RDONLY)
        return self._files[number]

    def close(self) -> None:
        """Close the open tars; reading opens them again."""
        while self._files:
            os.close(self._files.popitem()[1])

    def __del__(self) -> None:
        if hasattr(self, "_files"):
            self.close()

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_files": {}}
