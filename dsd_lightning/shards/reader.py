"""How is a set of pair shards read, by position? Random access, so that a run resumes at exactly the next sample."""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from torch import Tensor

from dsd_lightning.pictures import PictureError, load_picture
from dsd_lightning.shards.format import (
    PARTS,
    DamagedSample,
    SampleRecord,
    ShardError,
    ShardIndex,
    sha256_of,
)
from dsd_lightning.shards.scan import ScannedShard, find_shards, scan_shard

Verification = Literal["size", "sha256", "off"]
_OPEN_FILES = 64
_PICTURES = "KEY.{part}.webp (or .png, .jpg)"
_FILE_OF_PART = {
    "reference": _PICTURES.format(part="reference"),
    "target": _PICTURES.format(part="target"),
    "record": "KEY.json",
    "encoded": "KEY.encoded.safetensors",
    "text": "KEY.text.safetensors",
}


@dataclass(frozen=True)
class RawPair:
    """One sample as it is stored: pictures of their own sizes, not yet cropped.

    Attributes:
        key: the sample's key, unique in the set.
        reference: the reference picture, RGB, or I;16 (gray of 16 bits); None where the task has none.
        target: the target picture, alike.
        caption: what the target shows.
        instruction: what to do to the reference to get the target, where there is such a sentence.
        provenance: where the sample comes from.
        facts: plain integers for probes; empty for pictures from the world.
        encoded: encodings of the pictures by name; None unless asked for by `encoding_key`.
        text: embeddings of the caption by name; None unless asked for, or where there are none.
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


class PairShards:
    """A set of pair shards as a sequence: `len(shards)`, `shards.keys`, `shards[position]`.

    The headers of all tars are read once, here; a sample is then read from its bytes alone. Samples are ordered by the
    tars' names and, within a tar, as they lie. Picklable: a worker process opens its own files. A folder of webdataset
    tars without index.json is read too; then `index` is None and nothing can be verified.

    Args:
        root: the set's folder.
        task: refuse a set that was made for another task; None takes any.
        encoding_key: read the stored encodings and refuse those made under another key; None leaves them unread.
        require_reference: refuse samples without a reference picture.
        verify: compare the tars with index.json: their "size", their "sha256" (reads everything once), or "off".
        ignore_index: read the tars as though there were no index.json.

    Attributes:
        index: what index.json says; None without one.
        keys: the samples' keys, by position.
        damage: one line for each tar that is damaged or not as the index says; its readable samples are kept.

    Raises:
        ShardError: no set in `root`, or one that is still being written; another task or encoding key; a tar that is
            missing or in no index; a sample without a target, a record or another part asked for; a key used twice.
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
        if verify not in ("size", "sha256", "off"):
            raise ValueError(f"verify={verify!r}: choose 'size', 'sha256' or 'off'")
        self.root, self.task, self.encoding_key = Path(root), task, encoding_key
        self.paths = find_shards(self.root)
        self.index = None if ignore_index else ShardIndex.read(self.root)
        self._check_index()
        self._required = ["target", "record"]
        if require_reference:
            self._required.insert(0, "reference")
        if encoding_key is not None:
            self._required.append("encoded")
        self.damage: list[str] = []
        self.keys: list[str] = []
        self._files: dict[int, int] = {}
        self._scan(verify)

    def _check_index(self) -> None:
        index = self.index
        if index is not None:
            named, found = {shard.name for shard in index.shards}, {path.name for path in self.paths}
            if missing := sorted(named - found):
                raise ShardError(
                    f"{self.root}: index.json names {len(missing)} tars that are not there, first '{missing[0]}'; "
                    f"bring them back, or go on without: 'python -m dsd_lightning.shards index {self.root} --overwrite'"
                )
            if surplus := sorted(found - named):
                raise ShardError(
                    f"{self.root}: {len(surplus)} tars are not in index.json, first '{surplus[0]}'; move them away, or "
                    f"run 'python -m dsd_lightning.shards index {self.root} --overwrite' to take them in"
                )
            if self.task is not None and index.task is not None and index.task != self.task:
                raise ShardError(
                    f"{self.root} holds pairs for task '{index.task}', but task '{self.task}' was asked for; choose "
                    f"task={index.task} or another folder"
                )
        stored = index.encoding_key if index is not None else None
        if self.encoding_key is not None and stored != self.encoding_key:
            made = "no encodings known by a key" if stored is None else f"encodings made under the key '{stored}'"
            raise ShardError(
                f"{self.root} holds {made}, but '{self.encoding_key}' was asked for; encode the set again for this "
                f"architecture and base, or train from its pictures"
            )

    def _scan(self, verify: Verification) -> None:
        entries = {entry.name: entry for entry in self.index.shards} if self.index is not None else {}
        shard_of: list[int] = []
        spans: list[list[tuple[int, int]]] = []
        first_seen: dict[str, Path] = {}
        for number, path in enumerate(self.paths):
            scanned = scan_shard(path)
            entry = entries.get(path.name)
            damage = [scanned.damage] if scanned.damage else []
            if entry is not None and verify != "off":
                size = path.stat().st_size
                if size != entry.bytes:
                    damage.append(f"index.json says {entry.bytes} bytes, the file has {size}")
                elif verify == "sha256" and sha256_of(path) != entry.sha256:
                    damage.append("its sha256 is not the one in index.json: some bytes have changed")
            samples = self._whole_samples(path, scanned)
            for key, parts in samples.items():
                if key in first_seen:
                    raise ShardError(
                        f"{path}: key '{key}' is used in {first_seen[key].name} too; keys name samples for good and "
                        f"must be unique in a set: rename the members, or keep the tars in folders of their own"
                    )
                first_seen[key] = path
                self.keys.append(key)
                shard_of.append(number)
                spans.append([parts.get(part, (0, -1)) for part in PARTS])
            if entry is not None and len(samples) != entry.samples:
                damage.append(f"index.json says {entry.samples} samples, {len(samples)} are readable")
            if damage:
                self.damage.append(f"{path}: " + "; ".join(damage))
        if not self.keys:
            why = "; ".join(self.damage) or "none of their members is named KEY.target.webp, .png or .jpg"
            raise ShardError(f"{self.root}: no sample in {len(self.paths)} tars: {why}")
        self._shard_of = np.array(shard_of, dtype=np.int32)
        self._spans = np.array(spans, dtype=np.int64)  # [sample, part, (offset, size)]; size -1: absent

    def _whole_samples(self, path: Path, scanned: ScannedShard) -> dict[str, dict[str, tuple[int, int]]]:
        """Return the samples that have every part asked for; refuse a lack that damage does not explain."""
        samples = dict(scanned.samples)
        for key, parts in scanned.samples.items():
            missing = [part for part in self._required if part not in parts]
            if not missing:
                continue
            if scanned.damage and key == scanned.last_key:
                del samples[key]
                continue
            needed = _FILE_OF_PART[missing[0]].replace("KEY", key)
            there = ", ".join(part for part in PARTS if part in parts)
            raise ShardError(
                f"{path}: sample '{key}' lacks its {missing[0]}, '{needed}' (it has: {there}); add the file, or remove "
                f"the sample's other files and run 'python -m dsd_lightning.shards index {self.root} --overwrite'"
            )
        return samples

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
        target = self._picture(position, "target")
        assert target is not None, "the scan keeps no sample without a target"
        encoded, text = self.encodings(position) if self.encoding_key is not None else (None, None)
        return RawPair(
            key=self.keys[position],
            reference=self._picture(position, "reference"),
            target=target,
            caption=record.caption,
            instruction=record.instruction,
            provenance=dict(record.provenance),
            facts=dict(record.facts),
            encoded=encoded,
            text=text,
        )

    def record(self, position: int) -> SampleRecord:
        """Read only the words of a sample. Raises as `shards[position]` does."""
        data = self._bytes(position, "record")
        assert data is not None, "the scan keeps no sample without a record"
        return SampleRecord.from_bytes(data, self.shard_name(position), self.keys[position])

    def encodings(self, position: int) -> tuple[dict[str, Tensor] | None, dict[str, Tensor] | None]:
        """Read only the (encoded, text) tensors of a sample; None for those that are not stored."""
        return self._tensors(position, "encoded"), self._tensors(position, "text")

    def shard_name(self, position: int) -> str:
        """Return the path of the tar in which a sample lies."""
        return str(self.paths[self._shard_of[position]])

    def sizes(self, position: int) -> dict[str, int]:
        """Return the bytes of each part that a sample has."""
        return {part: int(size) for part, (_, size) in zip(PARTS, self._spans[position], strict=True) if size >= 0}

    def target_bytes(self, position: int) -> bytes:
        """Return the file of a sample's target picture.

        Raises:
            DamagedSample: it cannot be read.
        """
        data = self._bytes(position, "target")
        assert data is not None, "the scan keeps no sample without a target"
        return data

    def target_size(self, position: int) -> tuple[int, int]:
        """Return (width, height) of a sample's target picture, from its header alone.

        Raises:
            DamagedSample: the picture cannot be read.
        """
        data = self._bytes(position, "target")
        try:
            with Image.open(io.BytesIO(data or b"")) as image:
                return image.size
        except (OSError, ValueError) as error:
            raise self._damaged(position, f"its target is no readable picture: {error}") from error

    def _picture(self, position: int, part: str) -> Image.Image | None:
        data = self._bytes(position, part)
        try:
            return None if data is None else load_picture(data)
        except PictureError as error:
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
