"""Writes candidates as shards: decode, check, convert, store; orphans are listed, and refused unless allowed."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Generator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from PIL import Image
from tqdm import tqdm

from dsd_lightning.images.pixels import ImageError, load_image, require_side, shrink, stored_format, upright_size
from dsd_lightning.packing.candidates import Candidate, ImageSource, Keys, Orphan, PackingError, Source
from dsd_lightning.shards import ShardIndex, ShardWriter, encode_image
from dsd_lightning.shards.writer import ImageFormat

_IN_FLIGHT_PER_WORKER = 4
_LISTED = 50


@dataclass
class PackingReport:
    """The outcome for a source.

    Attributes:
        index: the index of the set that was written; None where orphans were refused.
        orphans: everything that is no pair and was not expected.
        rejections: how many things were left out, by reason.
    """

    index: ShardIndex | None = None
    orphans: list[Orphan] = field(default_factory=list)
    rejections: Counter[str] = field(default_factory=Counter)

    def add(self, orphan: Orphan) -> None:
        """Count an orphan, and list it unless it was left out on purpose."""
        self.rejections[orphan.reason] += 1
        if not orphan.expected:
            self.orphans.append(orphan)

    def summary(self) -> str:
        """Return how many were left out, by reason; empty if none."""
        return ", ".join(f"{count} {reason}" for reason, count in sorted(self.rejections.items()))


def listed(orphans: Sequence[Orphan]) -> list[str]:
    """Return a line for each of the first orphans, as messages list them."""
    more = [f"... and {len(orphans) - _LISTED} more"] if len(orphans) > _LISTED else []
    return [f"{orphan.reason}: {orphan.detail}" for orphan in orphans[:_LISTED]] + more


@dataclass(frozen=True)
class _Prepared:
    candidate: Candidate
    target: bytes
    reference: bytes | None
    mask: bytes | None


def _prepare_image(source: ImageSource, resolution: int | None, image_format: ImageFormat) -> bytes:
    """Return an image as it is to be stored: the file itself where nothing is to be done to it, else encoded again."""
    data = source.read_bytes() if isinstance(source, Path) else source
    image = data if isinstance(data, Image.Image) else load_image(data)
    require_side(image)
    smaller = shrink(image, resolution)
    if isinstance(data, bytes) and smaller is image and stored_format(data) is not None:
        return data
    return encode_image(smaller, image_format)


def _prepare(candidate: Candidate, resolution: int | None, image_format: ImageFormat) -> _Prepared | Orphan:
    stored: dict[str, bytes | None] = {}
    images = {"reference": candidate.reference, "target": candidate.target, "mask": candidate.mask}
    for frame, image in images.items():
        try:
            stored[frame] = None if image is None else _prepare_image(image, resolution, image_format)
        except (ImageError, OSError) as error:
            where = f"{candidate.name}: {image}" if isinstance(image, Path) else candidate.name
            return Orphan(candidate.name, f"unreadable_{frame}", f"{where}: {error}")
    target = stored["target"]
    assert target is not None, "a candidate always has a target"
    mask = stored["mask"]
    if mask is not None and (sizes := [upright_size(each) for each in (mask, target)])[0] != sizes[1]:
        detail = f"{candidate.name}: its mask has {sizes[0]} pixels (width, height), but its target {sizes[1]}"
        return Orphan(candidate.name, "mask_of_another_size", detail)
    return _Prepared(candidate, target, stored["reference"], mask)


def _prepared(
    source: Source, resolution: int | None, image_format: ImageFormat, workers: int
) -> Generator[_Prepared | Orphan, None, None]:
    """Yield what `source` yields, in order, with images ready to store; prepared by threads, as PIL releases the GIL."""
    waiting: deque[Future[_Prepared | Orphan] | Orphan] = deque()
    pool = ThreadPoolExecutor(workers)
    try:
        for each in source:
            waiting.append(each if isinstance(each, Orphan) else pool.submit(_prepare, each, resolution, image_format))
            while len(waiting) > workers * _IN_FLIGHT_PER_WORKER:
                first = waiting.popleft()
                yield first.result() if isinstance(first, Future) else first
        for rest in waiting:
            yield rest.result() if isinstance(rest, Future) else rest
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def pack(
    source: Source,
    out: str | Path,
    *,
    task: str,
    resolution: int | None = None,
    allow_orphans: bool = False,
    overwrite: bool = False,
    image_format: ImageFormat = "webp",
    max_bytes: int | float = 1e9,
    workers: int = 4,
    progress: bool = False,
) -> PackingReport:
    """Write the pairs of `source` as a set of shards in `out`.

    Images that are upright RGB files of webp, png or jpg and small enough are stored as they are; others are
    converted (transparency over white, EXIF orientation applied, palettes and gray to RGB) and stored without loss. Gray
    of 16 bits keeps its precision.

    Args:
        source: the pairs; see `open_source`.
        out: the set's folder.
        task: the task's name.
        resolution: images with a longer short side (pixels) are shrunk to it; None keeps sizes. None is enlarged.
        allow_orphans: leave orphans out and count them in the index, rather than refuse the source.
        overwrite: replace the set that is in `out`.
        image_format: format of converted images, "webp" or "png", without loss.
        max_bytes: size of a tar, bytes.
        workers: threads that decode and encode.
        progress: show a bar on standard error.

    Returns:
        The report; its index is None, and nothing is written, where there were orphans that were not allowed.

    Raises:
        PackingError: not one pair is left, or a number is out of range.
        ShardError: `out` holds a set already and `overwrite` is off.
    """
    if (resolution is not None and resolution < 1) or workers < 1:
        raise PackingError(f"resolution={resolution} pixels, workers={workers}: both must be at least 1")
    report = PackingReport()
    for orphan in source.orphans:
        report.add(orphan)
    if report.orphans and not allow_orphans:
        return report
    keys = Keys()
    with ExitStack() as stack:
        writer = ShardWriter(
            out, task=task, resolution=resolution, max_bytes=max_bytes, image_format=image_format, overwrite=overwrite
        )
        stack.callback(writer.abort)  # does nothing after close()
        ready = _prepared(source, resolution, image_format, workers)
        stack.callback(ready.close)
        for each in tqdm(ready, total=len(source), desc="packing", unit="pair", disable=not progress):
            if isinstance(each, Orphan):
                report.add(each)
            elif allow_orphans or not report.orphans:
                pair = each.candidate
                key = keys.make(pair.name)
                words = (pair.caption, pair.instruction, pair.provenance)
                writer.write(key, each.reference, each.target, *words, mask=each.mask)
        if report.orphans and not allow_orphans:
            return report
        if not len(writer):
            raise PackingError(f"not one pair is left: {dict(report.rejections) or 'the source is empty'}")
        for reason, count in report.rejections.items():
            writer.reject(reason, count)
        report.index = writer.close()
    return report
