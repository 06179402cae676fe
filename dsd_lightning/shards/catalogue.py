"""Lists the samples of a set of pair shards and the place of their bytes, from the tars' headers and index.json alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from jaxtyping import Int32, Int64

from dsd_lightning.shards.format import PARTS, ShardError, ShardIndex, sha256_of
from dsd_lightning.shards.scan import COMPRESSED, ScannedShard, compressed_tars, find_shards, scan_shard

Verification = Literal["size", "sha256", "off"]

_IMAGES = "KEY.{part}.webp (or .png, .jpg)"
_FILE_OF_PART = {
    "reference": _IMAGES.format(part="reference"),
    "target": _IMAGES.format(part="target"),
    "record": "KEY.json",
    "encoded": "KEY.encoded.safetensors",
    "text": "KEY.text.safetensors",
    "mask": _IMAGES.format(part="mask"),
}


@dataclass(frozen=True)
class Catalogue:
    """The samples of a set, ordered by the tars' names and, within a tar, by their place.

    Attributes:
        paths: the tars.
        index: the content of index.json; None without one.
        keys: the samples' keys, by position.
        shard_of: the number in `paths` of each sample's tar.
        spans: (offset, size) in bytes of each of a sample's `PARTS`; size -1 where it has no such part.
        damage: one line for each tar that is damaged or not as the index says; its readable samples are kept.
        passed_over: one line for each tar with samples that cannot be read because of their names, or that is compressed.
        dotted: number of samples whose keys hold dots.
    """

    paths: list[Path]
    index: ShardIndex | None
    keys: list[str]
    shard_of: Int32[np.ndarray, " samples"]
    spans: Int64[np.ndarray, "samples parts 2"]
    damage: list[str]
    passed_over: list[str]
    dotted: int


def read_catalogue(
    root: Path,
    task: str | None,
    encoding_key: str | None,
    required: Sequence[str],
    verify: Verification = "size",
    ignore_index: bool = False,
) -> Catalogue:
    """Read the headers of all tars in `root`.

    Args:
        root: the set's folder.
        task: refuse a set of another task; None accepts any.
        encoding_key: refuse encodings under another key; None needs none.
        required: the parts without which a sample is refused; of the last sample of a damaged tar, left out.
        verify: compare the tars with index.json: their "size", their "sha256" (reads everything once), or "off".
        ignore_index: read the tars as though there were no index.json.

    Raises:
        ShardError: as `PairShards` says.
    """
    if verify not in ("size", "sha256", "off"):
        raise ValueError(f"verify={verify!r}: choose 'size', 'sha256' or 'off'")
    paths = find_shards(root)
    index = None if ignore_index else ShardIndex.read(root)
    if index is not None:
        _check_index(root, paths, index, task)
    _check_encodings(root, index, encoding_key)
    entries = {entry.name: entry for entry in index.shards} if index is not None else {}
    keys: list[str] = []
    shard_of: list[int] = []
    spans: list[list[tuple[int, int]]] = []
    damaged: list[str] = []
    first_seen: dict[str, Path] = {}
    passed_over = [f"{path}: {COMPRESSED}" for path in compressed_tars(root)]
    dotted = 0
    for number, path in enumerate(paths):
        scanned = scan_shard(path)
        if scanned.dotted:
            dotted += len(scanned.dotted)
            first = next(iter(scanned.dotted))
            passed_over.append(
                f"{path}: {len(scanned.dotted)} samples are passed over because their keys hold dots, the first '{first}'; "
                "rename these members"
            )
        entry = entries.get(path.name)
        damage = [scanned.damage] if scanned.damage else []
        if entry is not None and verify != "off":
            size = path.stat().st_size
            if size != entry.bytes:
                damage.append(f"index.json says {entry.bytes} bytes, the file has {size}")
            elif verify == "sha256" and sha256_of(path) != entry.sha256:
                damage.append("its sha256 is not the one in index.json: some bytes have changed")
        samples = _whole_samples(root, path, scanned, required)
        for key, parts in samples.items():
            if key in first_seen:
                raise ShardError(
                    f"{path}: key '{key}' is used in {first_seen[key].name} too; keys identify samples and "
                    f"must be unique in a set: rename the members, or keep the tars in folders of their own"
                )
            first_seen[key] = path
            keys.append(key)
            shard_of.append(number)
            spans.append([parts.get(part, (0, -1)) for part in PARTS])
        if entry is not None and len(samples) != entry.samples:
            damage.append(f"index.json says {entry.samples} samples, {len(samples)} are readable")
        if damage:
            damaged.append(f"{path}: " + "; ".join(damage))
    if not keys:
        why = "; ".join([*damaged, *passed_over]) or "none of their members is named KEY.target.webp, .png or .jpg"
        raise ShardError(f"{root}: no sample in {len(paths)} tars: {why}")
    places = np.array(shard_of, dtype=np.int32), np.array(spans, dtype=np.int64)
    return Catalogue(paths, index, keys, *places, damaged, passed_over, dotted)


def _check_index(root: Path, paths: Sequence[Path], index: ShardIndex, task: str | None) -> None:
    named, present = {shard.name for shard in index.shards}, {path.name for path in paths}
    if missing := sorted(named - present):
        raise ShardError(
            f"{root}: index.json names {len(missing)} tars that are not there, first '{missing[0]}'; "
            f"restore them, or go on without: 'python -m dsd_lightning.shards index {root} --overwrite'"
        )
    if surplus := sorted(present - named):
        raise ShardError(
            f"{root}: {len(surplus)} tars are not in index.json, first '{surplus[0]}'; move them away, or "
            f"run 'python -m dsd_lightning.shards index {root} --overwrite' to add them"
        )
    if task is not None and index.task is not None and index.task != task:
        raise ShardError(
            f"{root} holds pairs for task '{index.task}', but the run's task is '{task}'; choose "
            f"task={index.task} or another folder"
        )


def _check_encodings(root: Path, index: ShardIndex | None, encoding_key: str | None) -> None:
    stored = index.encoding_key if index is not None else None
    if encoding_key is not None and stored != encoding_key:
        stored_as = "no encodings with a key" if stored is None else f"encodings under the key '{stored}'"
        raise ShardError(
            f"{root} holds {stored_as}, but '{encoding_key}' is needed; encode the set again for this "
            f"architecture and base, or train from its images"
        )


def _whole_samples(
    root: Path, path: Path, scanned: ScannedShard, required: Sequence[str]
) -> dict[str, dict[str, tuple[int, int]]]:
    """Return the samples that have every required part; refuse a lack that damage does not explain."""
    samples = dict(scanned.samples)
    for key, parts in scanned.samples.items():
        missing = [part for part in required if part not in parts]
        if not missing:
            continue
        if scanned.damage and key == scanned.last_key:
            del samples[key]
            continue
        needed = _FILE_OF_PART[missing[0]].replace("KEY", key)
        there = ", ".join(part for part in PARTS if part in parts)
        raise ShardError(
            f"{path}: sample '{key}' lacks its {missing[0]}, '{needed}' (it has: {there}); add the file, or remove "
            f"the sample's other files and run 'python -m dsd_lightning.shards index {root} --overwrite'"
        )
    return samples
