"""Stage 8: writes curated pairs as shards for training and validation; no subject is in both."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dsd_lightning.distillation.records import DIRECTIONS, SIDES, DistillationError, Record
from dsd_lightning.distillation.store import Manifest, Store, digest_of
from dsd_lightning.files.atomic import write_json
from dsd_lightning.randomness import uniform
from dsd_lightning.shards import ShardIndex, ShardWriter

MADE_FROM = "made_from.json"
TRAINING, VALIDATION = "train", "validation"


@dataclass(frozen=True)
class ShardSettings:
    """How shards are written.

    Attributes:
        root: folder of the two sets, `train` and `validation`.
        task: the task's name.
        validation_share: share of the subjects that are never trained on, by a hash of the subject.
        resolution: short side of the images, pixels.
        max_bytes: size of a tar.
    """

    root: str
    task: str
    validation_share: float
    resolution: int
    max_bytes: float

    def __post_init__(self) -> None:
        if not 0 <= self.validation_share < 1:
            raise DistillationError(f"shards.validation_share={self.validation_share}: must be in [0, 1)")


def subject_of(record: Record) -> str:
    """Return the subject by which pairs are split: its words, in lower case."""
    return " ".join(str(record.values["subject"]).lower().split())


def write_shards(
    store: Store,
    manifests: Sequence[Manifest],
    rejections: Counter[str],
    settings: ShardSettings,
    origin: Mapping[str, str],
) -> dict[str, int]:
    """Write both sets from the captioned pairs, unless they are there already; return their numbers of samples.

    Each pair is written in both directions; `origin` goes into the index of both sets.

    Raises:
        DistillationError: there is no pair for training, or there are files in the folder that are not of a run.
    """
    root = Path(settings.root)
    made_from = {
        "pairs": digest_of([manifest.digest for manifest in manifests]),
        "task": settings.task,
        "validation_share": settings.validation_share,
        "max_bytes": settings.max_bytes,
        "rejections": dict(sorted(rejections.items())),
        "origin": dict(origin),
    }
    note = root / MADE_FROM
    if note.exists() and (previous := json.loads(note.read_text()))["made_from"] == made_from:
        return dict(previous["samples"])
    foreign = [name for name in (TRAINING, VALIDATION) if (root / name).is_dir() and any((root / name).iterdir())]
    if foreign and not note.exists():
        raise DistillationError(
            f"{root / foreign[0]} holds files that are not of a run; give another shards.root=FOLDER"
        )
    root.mkdir(parents=True, exist_ok=True)
    _write_note(note, None, {})
    writers: dict[str, ShardWriter] = {}
    samples: Counter[str] = Counter()
    try:
        for manifest in manifests:
            for record in store.read(manifest.stage, manifest.partition, SIDES):
                split = (
                    VALIDATION if uniform("validation", subject_of(record)) < settings.validation_share else TRAINING
                )
                if split not in writers:
                    writers[split] = _writer(root / split, settings, origin)
                samples[split] += _write_both(writers[split], record)
        if not samples[TRAINING]:
            raise DistillationError(
                f"no pair is left for training: {dict(rejections) or 'there were no captions'}; the report says more"
            )
        for reason, number in sorted(rejections.items()):
            writers[TRAINING].reject(reason, number)
        for writer in writers.values():
            writer.close()
    except BaseException:
        for writer in writers.values():
            writer.abort()
        raise
    if VALIDATION not in writers and (root / VALIDATION).is_dir():
        _remove_set(root / VALIDATION)
    _write_note(note, made_from, samples)
    return dict(samples)


def _write_note(note: Path, made_from: Mapping[str, Any] | None, samples: Mapping[str, int]) -> None:
    write_json(note, {"made_from": made_from, "samples": dict(samples)})


def _writer(folder: Path, settings: ShardSettings, origin: Mapping[str, str]) -> ShardWriter:
    return ShardWriter(
        folder,
        task=settings.task,
        resolution=settings.resolution,
        max_bytes=settings.max_bytes,
        origin=origin,
        overwrite=True,
    )


def _remove_set(folder: Path) -> None:
    index = ShardIndex.read(folder)
    (folder / "index.json").unlink(missing_ok=True)
    for shard in index.shards if index is not None else ():
        (folder / shard.name).unlink(missing_ok=True)


def _write_both(writer: ShardWriter, record: Record) -> int:
    values = record.values
    provenance = {
        name: values[name]
        for name in ("caption", "subject", "family", "prompt", "seed", "panels", "same", "confidence")
        if name in values
    }
    for reference, target in DIRECTIONS:
        writer.write(
            f"{record.id}-{'ab' if target == SIDES[1] else 'ba'}",
            record.images[reference],
            record.images[target],
            values["captions"][target],
            values["instructions"][target],
            {**provenance, "source": "distillation", "pair": record.id},
        )
    return len(DIRECTIONS)
