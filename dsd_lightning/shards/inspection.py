"""Verifies every sample of a set, describes it, and writes index.json for tars without one."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from tqdm import tqdm

from dsd_lightning.files.atomic import remove_leftovers
from dsd_lightning.shards.format import INDEX_NAME, DamagedSample, ShardEntry, ShardError, ShardIndex, sha256_of
from dsd_lightning.shards.reader import PairShards


def verify_shards(root: str | Path, *, decode: bool = True, progress: bool = False) -> list[str]:
    """Return the problems of the set in `root`, a line each: damage, and samples that are passed over.

    Args:
        root: the set's folder.
        decode: read every sample too, not only the tars' headers, sizes and sha256.
        progress: show a bar on standard error.

    Raises:
        ShardError: there is no set, or not one that can be read at all.
    """
    index = ShardIndex.read(Path(root))
    shards = PairShards(root, encoding_key=index.encoding_key if index else None, verify="sha256")
    problems = [*shards.damage, *shards.passed_over]
    for position in tqdm(range(len(shards)), desc="verifying", unit="pair", disable=not progress) if decode else ():
        try:
            shards[position]
        except (DamagedSample, ShardError) as error:
            problems.append(str(error))
    return problems


def index_shards(root: str | Path, *, task: str | None = None, overwrite: bool = False) -> ShardIndex:
    """Write index.json for the tars in `root` and return it.

    Args:
        root: the folder that holds the tars.
        task: the task's name; None reads it from the samples' records where they all agree.
        overwrite: replace an index.json that is there; its task, resolution and rejections are kept.

    Raises:
        ShardError: there is an index already, no tar, a damaged tar, or the samples are of several tasks.
    """
    root = Path(root)
    old = root / INDEX_NAME
    if old.exists() and not overwrite:
        raise ShardError(f"{old} exists already; check the set with 'verify', or replace the index with --overwrite")
    if root.is_dir():
        remove_leftovers(root)  # of a command that was killed while it wrote the index
    before = _readable_index(root) if old.exists() else None
    shards = PairShards(root, ignore_index=True)
    if shards.damage:
        raise ShardError("a damaged tar is not indexed; replace or remove it first: " + "; ".join(shards.damage))
    counts = Counter(shards.shard_name(position) for position in range(len(shards)))
    task = task or (before.task if before else None) or _common_task(shards)
    rejections = dict(before.rejections) if before else {}
    if shards.dotted:
        rejections["key_with_dots"] = shards.dotted
    index = ShardIndex(
        task=task,
        resolution=before.resolution if before else None,
        encoding_key=before.encoding_key if before else None,
        shards=tuple(
            ShardEntry(path.name, counts[str(path)], path.stat().st_size, sha256_of(path)) for path in shards.paths
        ),
        rejections=rejections,
    )
    index.write(root)
    return index


def _readable_index(root: Path) -> ShardIndex | None:
    try:
        return ShardIndex.read(root)
    except ShardError:
        return None


def _common_task(shards: PairShards) -> str | None:
    tasks = {shards.record(position).task for position in range(len(shards))}
    if len(tasks) > 1:
        raise ShardError(
            f"{shards.root}: the samples are of several tasks ({', '.join(sorted(map(str, tasks)))}); keep one task a "
            f"folder, or name it with --task"
        )
    return tasks.pop()


def describe_shards(shards: PairShards, limit: int | None = 20) -> list[str]:
    """Return lines of text that describe a set: its index, its tars, and its first `limit` samples (None: all)."""
    index = shards.index
    lines = [f"{shards.root}: {len(shards)} pairs in {len(shards.paths)} tars"]
    if index is None:
        lines.append("no index.json (task unknown); 'python -m dsd_lightning.shards index' makes one")
    else:
        resolution = "as they came" if index.resolution is None else f"short side at most {index.resolution} pixels"
        lines.append(
            f"task: {index.task or 'unknown'}; images: {resolution}; encodings: {index.encoding_key or 'none'}"
        )
        lines += [f"{entry.name}: {entry.samples} pairs, {entry.bytes:,} bytes" for entry in index.shards]
        lines += [f"left out, {reason}: {count}" for reason, count in index.rejections.items()]
    shown = range(len(shards) if limit is None else min(limit, len(shards)))
    for position in shown:
        parts = ", ".join(f"{part} {size:,} bytes" for part, size in shards.sizes(position).items())
        lines.append(f"{position}\t{shards.keys[position]}\t{parts}")
    if len(shown) < len(shards):
        lines.append(f"... and {len(shards) - len(shown)} more (--all)")
    return lines
