"""Writes sets of pair shards: atomically, and the same bytes for the same samples."""

from __future__ import annotations

import io
import tarfile
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

from PIL import Image
from safetensors.torch import save as save_tensors
from torch import Tensor

from dsd_lightning.files.atomic import flush, rename
from dsd_lightning.images.pixels import STORED_FORMATS, is_sixteen_bit, stored_format, to_stored_mode
from dsd_lightning.shards.format import (
    INDEX_NAME,
    PARTIAL,
    SampleRecord,
    ShardEntry,
    ShardError,
    ShardIndex,
    check_key,
    sha256_of,
)

ImageFormat = Literal["webp", "png"]
ImageData = Image.Image | bytes
_LARGEST_WEBP_SIDE = 16383


def encode_image(image: Image.Image, image_format: ImageFormat = "webp") -> bytes:
    """Return `image` as a file without loss: RGB, or gray of 16 bits, which is a png whatever the format.

    Raises:
        ValueError: the format is neither webp nor png, or the image is too large for webp.
    """
    if image_format not in ("webp", "png"):
        raise ValueError(f"image_format={image_format!r}: choose 'webp' or 'png', both without loss")
    gray = is_sixteen_bit(image)
    if image_format == "webp" and not gray and max(image.size) > _LARGEST_WEBP_SIDE:
        raise ValueError(
            f"an image of {image.width} x {image.height} is beyond webp's {_LARGEST_WEBP_SIDE} pixels a side; choose "
            f"image_format='png' or a lower resolution"
        )
    # A fresh image carries no metadata (EXIF, colour profile, time), which would end up in the file.
    stored = to_stored_mode(image)
    plain = Image.new(stored.mode, stored.size)
    plain.paste(stored)
    buffer = io.BytesIO()
    if image_format == "webp" and not gray:
        plain.save(buffer, "WEBP", lossless=True, method=4, quality=50)
    else:
        plain.save(buffer, "PNG")
    return buffer.getvalue()


class _Tar:
    """One shard on its way: a tar of members without owner or time, under its partial name."""

    def __init__(self, path: Path) -> None:
        self.path, self.partial, self.samples = path, path.with_name(path.name + PARTIAL), 0
        self._file = self.partial.open("wb")
        # PAX writes the plain old header wherever it suffices, so that every tar program reads it.
        self._tar = tarfile.TarFile(fileobj=self._file, mode="w", format=tarfile.PAX_FORMAT)

    @property
    def size(self) -> int:
        """Bytes of the members so far."""
        return int(self._tar.offset)

    def add(self, members: Mapping[str, bytes]) -> None:
        """Append the members of one sample."""
        for name, data in members.items():
            header = tarfile.TarInfo(name)  # mode 0644, time 0, owner 0
            header.size = len(data)
            self._tar.addfile(header, io.BytesIO(data))
        self.samples += 1

    def finish(self) -> ShardEntry:
        """Flush the shard to the disk and return the shard's line of the index; the name stays partial."""
        self._tar.close()
        flush(self._file)
        self._file.close()
        return ShardEntry(self.path.name, self.samples, self.partial.stat().st_size, sha256_of(self.partial))

    def discard(self, final_too: bool) -> None:
        """Remove the partial file, and the finished one too where that is this writer's own."""
        self._file.close()
        self.partial.unlink(missing_ok=True)
        if final_too:
            self.path.unlink(missing_ok=True)


class ShardWriter:
    """Writes a set of pair shards: `with ShardWriter(root, task="identity", resolution=512) as writer: ...`.

    The set appears at the end, atomically: until then there are `*.partial` files, which readers refuse. Leaving the
    block by an exception (or Ctrl-C) removes what was written. Equal samples give equal bytes.

    Args:
        root: the set's folder; created where missing.
        task: the task's name.
        resolution: greatest short side of the images, pixels; None where they keep their sizes.
        max_bytes: a tar is closed before it grows beyond this many bytes (one sample always fits).
        image_format: how images are stored, "webp" or "png", both without loss; gray of 16 bits always as png.
        encoding_key: identifies what the stored encodings depend on; needed where samples have `encoded` or `text`.
        origin: model and licence of generated images; see `ShardIndex`.
        overwrite: replace the set that is in `root`; it stays until the new one is complete.

    Raises:
        ShardError: `root` already holds a set, or a part of one, and `overwrite` is off.
    """

    def __init__(
        self,
        root: str | Path,
        *,
        task: str,
        resolution: int | None,
        max_bytes: int | float = 1e9,
        image_format: ImageFormat = "webp",
        encoding_key: str | None = None,
        origin: Mapping[str, str] | None = None,
        overwrite: bool = False,
    ) -> None:
        self.root, self.task, self.resolution = Path(root), task, resolution
        self.max_bytes, self.image_format, self.encoding_key = int(max_bytes), image_format, encoding_key
        self.origin = dict(origin or {})
        self.rejections: Counter[str] = Counter()
        self._made_root = not self.root.exists()
        self.root.mkdir(parents=True, exist_ok=True)
        self._old = self._find_old(overwrite)
        self._replacing = False
        self._keys: set[str] = set()
        self._tars: list[_Tar] = []
        self._entries: list[ShardEntry] = []
        self._closed = False

    def _find_old(self, overwrite: bool) -> list[Path]:
        """Return the files of the set to be replaced, its index first, and remove what an interrupted writer left."""
        old = sorted(p for p in self.root.iterdir() if p.suffix in (".tar", PARTIAL) or p.name == INDEX_NAME)
        if old and not overwrite:
            raise ShardError(
                f"{self.root} already holds '{old[0].name}' ({len(old)} files of a set of shards in all); write "
                f"somewhere else, or replace it with overwrite=True (--overwrite on the command line)"
            )
        for path in old:
            if path.suffix == PARTIAL:
                path.unlink()
        return sorted((path for path in old if path.suffix != PARTIAL), key=lambda path: path.name != INDEX_NAME)

    def __len__(self) -> int:
        return len(self._keys)

    def __enter__(self) -> ShardWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.close()
        else:
            self.abort()

    def reject(self, reason: str, count: int = 1) -> None:
        """Count samples that were left out; the index holds the counts."""
        self.rejections[reason] += count

    def write(
        self,
        key: str,
        reference: ImageData | None,
        target: ImageData,
        caption: str,
        instruction: str | None = None,
        provenance: Mapping[str, Any] | None = None,
        facts: Mapping[str, Any] | None = None,
        encoded: Mapping[str, Tensor] | None = None,
        text: Mapping[str, Tensor] | None = None,
        mask: ImageData | None = None,
    ) -> None:
        """Append one sample.

        Args:
            key: unique in the set; no dots, slashes or blanks.
            reference: the reference image; None where the task has none.
            target: the target image. Images given as bytes (webp, png or jpg, RGB, or png with gray of 16 bits) are
                stored as they are.
            caption: what the target shows.
            instruction: what to do to the reference to get the target.
            provenance: the sample's origin; plain JSON.
            facts: what probes need, plain integers by name.
            encoded: encodings of the images by name.
            text: embeddings of the caption by name.
            mask: where the target shows its subject, white on black, of the target's size.

        Raises:
            ValueError: a bad or repeated key, no caption, values that JSON cannot hold, bytes in another format, or
                encodings without an `encoding_key`.
        """
        check_key(key)
        if key in self._keys:
            raise ValueError(f"key {key!r} was already written to {self.root}; every sample needs a key of its own")
        if not caption.strip():
            raise ValueError(f"sample {key!r} has no caption")
        if (encoded is not None or text is not None) and self.encoding_key is None:
            raise ValueError(
                f"sample {key!r} has encodings, but ShardWriter was given no encoding_key to identify them"
            )
        record = SampleRecord(caption, instruction, self.task, provenance or {}, facts or {})
        members: dict[str, bytes] = {}
        for frame, image in (("reference", reference), ("target", target), ("mask", mask)):
            if image is not None:
                extension, data = self._image(key, image)
                members[f"{key}.{frame}.{extension}"] = data
        try:
            members[f"{key}.json"] = record.to_bytes()
        except TypeError as error:
            raise ValueError(f"sample {key!r}: provenance and facts must be plain JSON: {error}") from error
        for part, tensors in (("encoded", encoded), ("text", text)):
            if tensors is not None:
                members[f"{key}.{part}.safetensors"] = save_tensors({k: v.contiguous() for k, v in tensors.items()})
        self._tar_for(sum(map(len, members.values()))).add(members)
        self._keys.add(key)

    def _image(self, key: str, image: ImageData) -> tuple[str, bytes]:
        if isinstance(image, Image.Image):
            extension = "png" if is_sixteen_bit(image) else self.image_format
            return extension, encode_image(image, self.image_format)
        as_it_is = stored_format(image)
        if as_it_is is None:
            raise ValueError(
                f"sample {key!r}: bytes that are stored as they are must be an upright RGB image in one of "
                f"{', '.join(STORED_FORMATS.values())}, or gray of 16 bits in a png; pass the decoded image instead"
            )
        return as_it_is, image

    def _tar_for(self, size: int) -> _Tar:
        if self._tars and self._tars[-1].size + size <= self.max_bytes:
            return self._tars[-1]
        if self._tars:
            self._entries.append(self._tars[-1].finish())
        self._tars.append(_Tar(self.root / f"pairs-{len(self._tars):06d}.tar"))
        return self._tars[-1]

    def close(self) -> ShardIndex:
        """Finish the set and return its index.

        Raises:
            ShardError: no sample was written.
        """
        if self._closed:
            raise ShardError(f"the writer of {self.root} is closed already")
        try:
            return self._finish()
        except BaseException:
            self.abort()
            raise

    def _finish(self) -> ShardIndex:
        if not self._tars:
            raise ShardError(f"no sample was written to {self.root}; a set needs at least one")
        self._entries.append(self._tars[-1].finish())
        index = ShardIndex(
            self.task,
            self.resolution,
            tuple(self._entries),
            self.encoding_key,
            dict(sorted(self.rejections.items())),
            self.origin,
        )
        # As long as one name ends in .partial readers refuse the folder, so the index's own goes last.
        partial = index.write_partial(self.root)
        self._replacing = True
        for path in self._old:
            path.unlink()
        for tar in self._tars:
            rename(tar.partial, tar.path)
        rename(partial, self.root / INDEX_NAME)
        self._closed = True
        return index

    def abort(self) -> None:
        """Remove what was written, and the folder where this writer made it. A set to be replaced stays."""
        if self._closed:
            return
        self._closed = True
        for tar in self._tars:
            tar.discard(final_too=self._replacing)
        (self.root / (INDEX_NAME + PARTIAL)).unlink(missing_ok=True)
        if self._made_root and not any(self.root.iterdir()):
            self.root.rmdir()
