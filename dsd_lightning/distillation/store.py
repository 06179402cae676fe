"""Stores the records of each stage on disk, partition by partition, atomically and keyed by their inputs and settings.

    ROOT/STAGE/part-00007/records.jsonl    what was kept, a record a line
                          rejected.jsonl   what was not, with reason and detail
                          images.tar       the images that the stage made; absent if none
                          manifest.json    key, counts, cost, sha256 of the files

A partition is written to a folder that ends in `.partial`, synced, and renamed. Its key is the digest of the stage's settings
and of the partition that it was made from, so that a change of settings makes stale what depends on it, and nothing else.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import shutil
import socket
import tarfile
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dsd_lightning.distillation.records import DistillationError, Outcome, Record, Rejection, Usage
from dsd_lightning.files.atomic import flush, is_alive, rename

FORMAT = 1
RECORDS, REJECTED, IMAGES, MANIFEST = "records.jsonl", "rejected.jsonl", "images.tar", "manifest.json"
_STAGE = re.compile(r"[a-z_]+")
_PARTIAL, _OLD = ".partial", ".old"


@dataclass(frozen=True)
class Manifest:
    """A finished partition.

    Attributes:
        stage, partition: which one.
        key: digest of its inputs and settings.
        taken, kept: records that went in and came out.
        rejected: how many were not kept, by reason.
        usage: what models took for it.
        seconds: how long it took.
        files: sha256 of its files by name.
    """

    stage: str
    partition: int
    key: str
    taken: int
    kept: int
    rejected: Mapping[str, int]
    usage: Usage
    seconds: float
    files: Mapping[str, str] = field(default_factory=dict)

    @property
    def digest(self) -> str:
        """Return what later partitions are made from: the digest of records and images."""
        return hashlib.sha256("".join(self.files.get(name, "") for name in (RECORDS, IMAGES)).encode()).hexdigest()

    def as_json(self) -> dict[str, Any]:
        """Return the fields as plain JSON."""
        return {**self.__dict__, "usage": self.usage.as_json(), "format": FORMAT}


def digest_of(values: Any) -> str:
    """Return the sha256 of plain JSON, in hex."""
    return hashlib.sha256(json.dumps(values, sort_keys=True, ensure_ascii=True).encode()).hexdigest()


class Store:
    """The partitions of all stages below one folder. Any number of processes may read and write it."""

    def __init__(self, root: str | Path) -> None:
        self.root = Path(root)

    def folder(self, stage: str, partition: int) -> Path:
        """Return where a partition is, or would be."""
        return self.root / stage / f"part-{partition:05d}"

    def manifest(self, stage: str, partition: int) -> Manifest | None:
        """Return a finished partition's manifest; None if it is not there, or of another format."""
        try:
            values = json.loads((self.folder(stage, partition) / MANIFEST).read_bytes())
        except FileNotFoundError:
            return None
        if values.pop("format", None) != FORMAT:
            return None
        return Manifest(**{**values, "usage": Usage.read(values["usage"])})

    def manifests(self, stage: str) -> list[Manifest]:
        """Return the manifests of a stage's finished partitions, in order."""
        names = [folder.name.removeprefix("part-") for folder in (self.root / stage).glob("part-*")]
        manifests = [self.manifest(stage, number) for number in sorted(int(name) for name in names if name.isdigit())]
        return [manifest for manifest in manifests if manifest is not None]

    def write(self, stage: str, partition: int, key: str, taken: int, outcome: Outcome, seconds: float) -> Manifest:
        """Write a partition, atomically, and return its manifest.

        Raises:
            DistillationError: two records with one id.
            OSError: the disk is full, or cannot be written; nothing of this partition is left then.
        """
        final = self.folder(stage, partition)
        partial = final.with_name(f"{final.name}.{_process()}{_PARTIAL}")
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        try:
            kept = self._write_records(partial, stage, outcome)
            rejected = [
                each.record.line(reason=each.reason, detail=each.detail)
                for each in sorted(outcome.rejected, key=lambda each: each.record.id)
            ]
            _write_synced(partial / RECORDS, b"".join(record.line() for record in kept))
            _write_synced(partial / REJECTED, b"".join(rejected))
            files = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(partial.iterdir())}
            reasons = dict(sorted(Counter(each.reason for each in outcome.rejected).items()))
            manifest = Manifest(
                stage, partition, key, taken, len(kept), reasons, outcome.usage, round(seconds, 3), files
            )
            _write_synced(partial / MANIFEST, json.dumps(manifest.as_json(), sort_keys=True, indent=1).encode())
            self._put_in_place(partial, final)
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            raise
        return manifest

    def _write_records(self, folder: Path, stage: str, outcome: Outcome) -> list[Record]:
        """Write the images that the records brought along, and return the records with their places."""
        kept: list[Record] = []
        seen: set[str] = set()
        files: dict[str, bytes] = {}
        for record in sorted(outcome.kept, key=lambda record: record.id):
            if record.id in seen:
                raise DistillationError(f"stage {stage} made two records {record.id!r}; ids must be unique")
            seen.add(record.id)
            new = {name: data for name, data in record.images.items() if name not in record.stored}
            files |= {f"{record.id}.{name}.png": data for name, data in new.items()}
            stored = {**record.stored, **{name: f"{stage}/{record.id}.{name}.png" for name in new}}
            kept.append(Record(record.id, record.values, stored))
        if files:
            buffer = io.BytesIO()
            with tarfile.TarFile(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as tar:
                for name, data in files.items():
                    header = tarfile.TarInfo(name)
                    header.size = len(data)
                    tar.addfile(header, io.BytesIO(data))
            _write_synced(folder / IMAGES, buffer.getvalue())
        return kept

    def _put_in_place(self, partial: Path, final: Path) -> None:
        """Rename a finished partition to its name; a stale one makes room first."""
        if final.exists():
            old = final.with_name(f"{final.name}.{_process()}{_OLD}")
            shutil.rmtree(old, ignore_errors=True)
            rename(final, old)
            rename(partial, final)
            shutil.rmtree(old, ignore_errors=True)
        else:
            rename(partial, final)

    def sweep(self) -> None:
        """Remove incomplete partitions that killed processes of this machine left."""
        for leftover in [*self.root.glob(f"*/*{_PARTIAL}"), *self.root.glob(f"*/*{_OLD}")]:
            host, _, process = leftover.name.split(".")[-2].rpartition("-")
            if host == _host() and process.isdigit() and not is_alive(int(process)):
                shutil.rmtree(leftover, ignore_errors=True)

    def read(self, stage: str, partition: int, looks_at: Collection[str] = ()) -> list[Record]:
        """Return a partition's records, with the bytes of the images `looks_at`."""
        records = [Record(**values) for values in self._lines(stage, partition, RECORDS)]
        return self.with_images(partition, records, looks_at) if looks_at else records

    def read_rejected(self, stage: str, partition: int, looks_at: Collection[str] = ()) -> list[Rejection]:
        """Return what a stage did not keep of a partition."""
        lines = [
            (values.pop("reason"), values.pop("detail"), Record(**values))
            for values in self._lines(stage, partition, REJECTED)
        ]
        records = self.with_images(partition, [record for *_, record in lines], looks_at)
        return [Rejection(record, reason, detail) for record, (reason, detail, _) in zip(records, lines, strict=True)]

    def _lines(self, stage: str, partition: int, name: str) -> Iterator[dict[str, Any]]:
        with (self.folder(stage, partition) / name).open("rb") as stream:
            for line in stream:
                yield json.loads(line)

    def with_images(self, partition: int, records: list[Record], looks_at: Collection[str]) -> list[Record]:
        """Return `records` with the bytes of those of their images that are asked for."""
        wanted = {record.stored[name] for record in records for name in looks_at if name in record.stored}
        contents: dict[str, bytes] = {}
        for stage in sorted({where.partition("/")[0] for where in wanted}):
            if not _STAGE.fullmatch(stage):  # a name such as ".." leads out of the folder
                raise DistillationError(
                    f"{self.folder(stage, partition)}: {stage!r} is no stage's name; this folder was not made by distill.py"
                )
            with tarfile.open(self.folder(stage, partition) / IMAGES) as tar:
                for member in tar:
                    if f"{stage}/{member.name}" in wanted:
                        stream = tar.extractfile(member)
                        if stream is None:
                            raise DistillationError(
                                f"{self.folder(stage, partition) / IMAGES}: {member.name!r} is no file"
                            )
                        contents[f"{stage}/{member.name}"] = stream.read()
        if missing := sorted(wanted - contents.keys()):
            raise DistillationError(f"{self.root}: partition {partition} lacks the image {missing[0]!r}; make it again")
        return [
            Record(
                record.id,
                record.values,
                record.stored,
                {name: contents[record.stored[name]] for name in looks_at if name in record.stored},
            )
            for record in records
        ]


def _host() -> str:
    return socket.gethostname().replace(".", "-")


def _process() -> str:
    return f"{_host()}-{os.getpid()}"


def _write_synced(path: Path, data: bytes) -> None:
    with path.open("wb") as stream:
        stream.write(data)
        flush(stream)
