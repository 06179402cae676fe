"""Defines pair shards on disk: names of members, the sample's record, index.json, and the errors.

A set is a folder of plain webdataset tar files. A sample is the members that share a KEY (no dots in it):

    KEY.reference.webp      the reference image, or .png, .jpg; absent where the task has none
    KEY.target.webp         the target image, or .png, .jpg
    KEY.mask.webp           where the target shows the subject (white), of the target's size (optional)
    KEY.json                {"caption", "instruction", "task", "provenance", "facts"}; only "caption" is required
    KEY.encoded.safetensors an architecture's encodings of the images (optional; see `encoding_key`)
    KEY.text.safetensors    embeddings of the caption (optional)

Beside the tars stands index.json: format_version, samples, task, resolution, encoding_key, shards (name, samples,
bytes, sha256) and rejections (how many samples were left out, by reason). While a set is being written there is a file
*.partial.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from dsd_lightning.files.atomic import write_json

FORMAT_VERSION = 1
INDEX_NAME = "index.json"
PARTIAL = ".partial"
IMAGE_EXTENSIONS = ("webp", "png", "jpg", "jpeg")
PARTS = ("reference", "target", "record", "encoded", "text", "mask")
"""The parts of a sample, in the order in which readers and writers list them."""

_MEMBER = re.compile(r"^(?:\./)*((?:[^/]*/)*[^./][^./]*)\.([^/]+)$")
_DOTTED = re.compile(rf"^(?:\./)*((?:[^/]*/)*[^./][^/]*)\.target\.(?:{'|'.join(IMAGE_EXTENSIONS)})$", re.IGNORECASE)
_PART_OF_SUFFIX: dict[str, str] = {
    "json": "record",
    "encoded.safetensors": "encoded",
    "text.safetensors": "text",
    **{f"{frame}.{extension}": frame for frame in ("reference", "target", "mask") for extension in IMAGE_EXTENSIONS},
}
_FORBIDDEN_IN_KEY = re.compile(r"[./\\\s\x00-\x1f\x7f]")
_LONGEST_KEY = 200
_TEXTS, _OBJECTS = ("instruction", "task"), ("provenance", "facts")
"""Optional fields of a record, by the kind of their values."""


class ShardError(ValueError):
    """A set of shards is another than required, or not in the format; the message names the place and the remedy."""


class DamagedSample(RuntimeError):
    """One sample cannot be read. The rest of its set can.

    Attributes:
        shard: path of the tar file.
        key: the sample's key.
        reason: what is wrong with it.
    """

    def __init__(self, shard: str, key: str, reason: str) -> None:
        super().__init__(shard, key, reason)
        self.shard, self.key, self.reason = shard, key, reason

    def __str__(self) -> str:
        return f"{self.shard}: sample '{self.key}' is damaged: {self.reason}"


@dataclass(frozen=True)
class SampleRecord:
    """The texts of a sample and its origin: its KEY.json.

    Attributes:
        caption: what the target shows.
        instruction: what to do to the reference to get the target, where there is such a sentence.
        task: the task's name, or None where unknown.
        provenance: where the sample comes from; any JSON object.
        facts: what probes need of it, plain integers by name (the miniature's scenes); else empty.
    """

    caption: str
    instruction: str | None = None
    task: str | None = None
    provenance: Mapping[str, Any] = field(default_factory=dict)
    facts: Mapping[str, Any] = field(default_factory=dict)

    def to_bytes(self) -> bytes:
        """Return the record as JSON, the same bytes for the same record."""
        values: dict[str, Any] = {name: getattr(self, name) for name in ("caption", "instruction", "task")}
        values["provenance"] = dict(self.provenance)
        if self.facts:
            values["facts"] = dict(self.facts)
        return json.dumps(values, sort_keys=True, ensure_ascii=False).encode()

    @classmethod
    def from_bytes(cls, data: bytes, shard: str, key: str) -> SampleRecord:
        """Read a record; other fields are ignored.

        Raises:
            DamagedSample: not a JSON object, or a field of another kind.
            ShardError: there is no caption in it.
        """
        try:
            values = json.loads(data)
        except (ValueError, RecursionError) as error:
            raise DamagedSample(shard, key, f"{key}.json is not JSON: {error}") from error
        if not isinstance(values, dict):
            raise DamagedSample(shard, key, f"{key}.json is not a JSON object but {type(values).__name__}")
        if not isinstance(values.get("caption"), str):
            raise ShardError(
                f"{shard}: sample '{key}': '{key}.json' has no text field 'caption' "
                f"(it has: {', '.join(values) or 'none'}); write the set again with one"
            )
        for name, kind, needed in (
            *((name, str, "text") for name in _TEXTS),
            *((name, dict, "object") for name in _OBJECTS),
        ):
            if not isinstance(values.get(name), kind | None):
                raise DamagedSample(shard, key, f"{key}.json: field '{name}' is no {needed} but {values[name]!r}")
        return cls(
            caption=values["caption"],
            instruction=values.get("instruction"),
            task=values.get("task"),
            provenance=values.get("provenance") or {},
            facts=values.get("facts") or {},
        )


@dataclass(frozen=True)
class ShardEntry:
    """One tar file of a set: its file name, number of samples, size in bytes, and sha256."""

    name: str
    samples: int
    bytes: int
    sha256: str


@dataclass(frozen=True)
class ShardIndex:
    """Content of index.json.

    Attributes:
        task: the task's name, or None where unknown.
        resolution: greatest short side of the images, pixels; None where they are as they came.
        encoding_key: what the stored encodings depend on (an architecture's `encoding_key`); None where there are none.
        shards: the tar files, by name.
        rejections: number of samples that were left out, by reason.
        origin: which model generated the images (`teacher`) and the fields of the licence that binds them (`license`,
            `license_name`, `license_link`); empty where they are one's own.
    """

    task: str | None
    resolution: int | None
    shards: tuple[ShardEntry, ...]
    encoding_key: str | None = None
    rejections: Mapping[str, int] = field(default_factory=dict)
    origin: Mapping[str, str] = field(default_factory=dict)

    @property
    def samples(self) -> int:
        """Number of samples of the set."""
        return sum(shard.samples for shard in self.shards)

    def write_partial(self, root: Path) -> Path:
        """Write index.json.partial and return it; renaming it completes the set."""
        partial = root / (INDEX_NAME + PARTIAL)
        self._write(partial)
        return partial

    def _write(self, path: Path) -> None:
        values = asdict(self)
        if not self.origin:
            del values["origin"]
        write_json(path, {"format_version": FORMAT_VERSION, "samples": self.samples, **values})

    def write(self, root: Path) -> None:
        """Write index.json atomically."""
        self._write(root / INDEX_NAME)

    @classmethod
    def read(cls, root: Path) -> ShardIndex | None:
        """Read the index of the set in `root`; None where there is none.

        Raises:
            ShardError: index.json is damaged or of another format version.
        """
        path = root / INDEX_NAME
        if not path.is_file():
            return None
        again = f"delete it and run 'python -m dsd_lightning.shards index {root}'"
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
            version = values["format_version"]
            if version == FORMAT_VERSION:
                return cls(
                    task=values["task"],
                    resolution=values["resolution"],
                    shards=tuple(ShardEntry(**shard) for shard in values["shards"]),
                    encoding_key=values.get("encoding_key"),
                    rejections=values.get("rejections", {}),
                    origin=values.get("origin", {}),
                )
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ShardError(f"{path} is damaged ({type(error).__name__}: {error}); {again}") from error
        raise ShardError(f"{path}: format version {version}, but this program reads version {FORMAT_VERSION}; {again}")


def member_part(name: str) -> tuple[str, str] | None:
    """Return (key, part) of a tar member's name, as webdataset splits it; None where it is no part of a sample."""
    match = _MEMBER.match(name)
    part = _PART_OF_SUFFIX.get(match[2].lower()) if match else None
    return (match[1], part) if match and part else None


def dotted_key(name: str) -> str | None:
    """Return the key of a target image whose key holds dots, which webdataset would cut at the first; else None."""
    match = _DOTTED.match(name)
    return match[1] if match and member_part(name) is None else None


def check_key(key: str) -> None:
    """Refuse a key that webdataset or a file system would misread.

    Raises:
        ValueError: the key is empty, too long, or holds a dot, a slash, a blank or a control character.
    """
    forbidden = _FORBIDDEN_IN_KEY.search(key)
    if forbidden:
        raise ValueError(
            f"key {key!r} holds {forbidden[0]!r}: keys are free of dots (what follows the first is the suffix), "
            f"slashes, blanks and control characters"
        )
    if not key or len(key) > _LONGEST_KEY or key.startswith("__"):
        raise ValueError(f"key {key!r}: keys have 1 to {_LONGEST_KEY} characters and do not begin with '__'")


def sha256_of(path: Path) -> str:
    """Return the sha256 of a file's bytes, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
