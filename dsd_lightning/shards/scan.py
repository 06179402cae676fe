"""Where in a tar file does each part of each sample lie? Headers only; a damaged tar yields what is whole in it."""

from __future__ import annotations

import tarfile
from dataclasses import dataclass, field
from pathlib import Path

from dsd_lightning.shards.format import PARTIAL, ShardError, member_part


@dataclass
class ScannedShard:
    """What the headers of one tar say.

    Attributes:
        samples: for each key, in order of appearance, its parts' (offset, size) in bytes by the part's name.
        damage: what is wrong with the tar as a whole; None where nothing is.
        last_key: the last sample met; the one that may lack parts because of the damage.
    """

    samples: dict[str, dict[str, tuple[int, int]]] = field(default_factory=dict)
    damage: str | None = None
    last_key: str | None = None


def scan_shard(path: Path) -> ScannedShard:
    """Read the headers of the tar at `path`.

    Members that belong to no sample (other suffixes, folders, links) are passed over. If the tar is damaged, what lies
    before the damage is kept, except for the sample in whose middle the file breaks off.

    Raises:
        ShardError: a sample holds the same part twice.
    """
    found = ScannedShard()
    total = path.stat().st_size
    try:
        # "r:" refuses compressed tars, in which no member can be read by its position.
        with tarfile.open(path, "r:") as tar:
            while (member := tar.next()) is not None:
                tar.members.clear()  # type: ignore[attr-defined]  # or tarfile would keep every header
                name = member_part(member.name) if member.isreg() else None
                whole = member.offset_data + member.size <= total
                if not whole:
                    found.damage = f"breaks off at byte {total}, within '{member.name}'"
                    if name is not None:
                        found.samples.pop(name[0], None)
                    return found
                if name is None:
                    continue
                key, part = name
                parts = found.samples.setdefault(key, {})
                if part in parts:
                    raise ShardError(
                        f"{path}: sample '{key}' holds two files for its {part}; keep one, or rename a sample"
                    )
                parts[part] = (member.offset_data, member.size)
                found.last_key = key
            with path.open("rb") as file:
                file.seek(tar.offset)
                if file.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
                    found.damage = (
                        f"no end of archive: it breaks off, or has a broken header, at byte {tar.offset} of {total}"
                    )
    except tarfile.TarError as error:
        found.damage = f"cannot be read as an uncompressed tar: {error}"
    return found


def find_shards(root: Path) -> list[Path]:
    """Return the tars in `root`, by name.

    Raises:
        ShardError: no such folder, no tar in it, or a set that is not whole yet.
    """
    if not root.is_dir():
        raise ShardError(f"{root} is not a folder; give the folder that holds the tar files of a set")
    if partial := sorted(path.name for path in root.iterdir() if path.suffix == PARTIAL):
        raise ShardError(
            f"{root} holds '{partial[0]}': the set is still being written, or writing it was cut short; wait, or write "
            f"it again with --overwrite"
        )
    paths = sorted(path for path in root.iterdir() if path.suffix == ".tar" and not path.name.startswith("."))
    if not paths:
        raise ShardError(
            f"{root} holds no .tar file; make a set from your own images with 'python -m dsd_lightning.packing "
            f"SOURCE {root} --task TASK'"
        )
    return paths
