"""Reads the place of each part of each sample from a tar's headers; a damaged tar yields its complete samples."""

from __future__ import annotations

import tarfile
from dataclasses import dataclass, field
from pathlib import Path

from dsd_lightning.files.listing import list_files
from dsd_lightning.shards.format import PARTIAL, ShardError, dotted_key, member_part

COMPRESSED = "a compressed tar cannot be read by position; decompress it (gunzip FILE.tar.gz)"


@dataclass
class ScannedShard:
    """Content of the headers of one tar.

    Attributes:
        samples: for each key, in order of appearance, its parts' (offset, size) in bytes by the part's name.
        damage: damage of the tar itself; None where there is none.
        last_key: the last sample; the one that may lack parts because of the damage.
        dotted: keys of samples that are passed over because their keys hold dots.
    """

    samples: dict[str, dict[str, tuple[int, int]]] = field(default_factory=dict)
    damage: str | None = None
    last_key: str | None = None
    dotted: list[str] = field(default_factory=list)


def scan_shard(path: Path) -> ScannedShard:
    """Read the headers of the tar at `path`.

    Members that belong to no sample (other suffixes, folders, links) are passed over. If the tar is damaged, the samples
    before the damage are kept, except for the one within which the file breaks off.

    Raises:
        ShardError: a sample holds the same part twice.
    """
    scanned = ScannedShard()
    total = path.stat().st_size
    try:
        # "r:" refuses compressed tars, in which no member can be read by its position.
        with tarfile.open(path, "r:") as tar:
            while (member := tar.next()) is not None:
                tar.members.clear()  # type: ignore[attr-defined]  # or tarfile would keep every header
                name = member_part(member.name) if member.isreg() else None
                if member.offset_data + member.size > total:
                    scanned.damage = f"breaks off at byte {total}, within '{member.name}'"
                    if name is not None:
                        scanned.samples.pop(name[0], None)
                    return scanned
                if name is None:
                    if member.isreg() and (key_with_dots := dotted_key(member.name)) is not None:
                        scanned.dotted.append(key_with_dots)
                    continue
                key, part = name
                parts = scanned.samples.setdefault(key, {})
                if part in parts:
                    raise ShardError(
                        f"{path}: sample '{key}' holds two files for its {part}; keep one, or rename a sample"
                    )
                parts[part] = (member.offset_data, member.size)
                scanned.last_key = key
            with path.open("rb") as file:
                file.seek(tar.offset)
                if file.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
                    scanned.damage = (
                        f"no end of archive: it breaks off, or has a broken header, at byte {tar.offset} of {total}"
                    )
    except tarfile.TarError as error:
        scanned.damage = f"cannot be read as an uncompressed tar: {error}; {COMPRESSED}"
    return scanned


def compressed_tars(root: Path) -> list[Path]:
    """Return the compressed tars in a folder, which cannot be read."""
    endings = (".gz", ".bz2", ".xz", ".zst")
    files = list_files(root, [*endings, ".tgz"], recursive=False)
    return [file for file in files if file.suffix.lower() == ".tgz" or file.stem.lower().endswith(".tar")]


def find_shards(root: Path) -> list[Path]:
    """Return the tars in `root`, by name.

    Raises:
        ShardError: no such folder, no tar in it, or a set that is not complete yet.
    """
    if not root.is_dir():
        raise ShardError(f"{root} is not a folder; give the folder that holds the tar files of a set")
    if partial := sorted(path.name for path in root.iterdir() if path.suffix == PARTIAL):
        raise ShardError(
            f"{root} holds '{partial[0]}': the set is still being written, or writing it was cut short; wait, or write "
            f"it again with --overwrite"
        )
    paths = list_files(root, [".tar"], recursive=False)
    if not paths and (compressed := compressed_tars(root)):
        raise ShardError(f"{compressed[0]}: {COMPRESSED}")
    if not paths:
        raise ShardError(
            f"{root} holds no .tar file; make a set from your own images with 'python -m dsd_lightning.packing "
            f"SOURCE {root} --task TASK'"
        )
    return paths
