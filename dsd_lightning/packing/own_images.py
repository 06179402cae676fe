"""Pairs the images of a subject with each other: every ordered pair of a folder's images, captions from files or names."""

from __future__ import annotations

import csv
import io
import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from dsd_lightning.files.atomic import write_text
from dsd_lightning.files.listing import find_file, list_files, natural_key
from dsd_lightning.files.rows import Table
from dsd_lightning.files.text import read_text
from dsd_lightning.packing.candidates import IMAGE_SUFFIXES, Candidate, Orphan, PackingError

CAPTIONS = "captions.csv"
"""The table of captions in the folder of images: columns image, caption and, optionally, instruction and subject."""

_LEAST = 2


@dataclass(frozen=True)
class OwnImage:
    """An image of a subject: its file, its name in the folder, whom it shows, and its texts, None where missing."""

    path: Path
    name: str
    subject: str
    caption: str | None = None
    instruction: str | None = None


def read_images(folder: Path, caption_from_name: bool = False) -> list[OwnImage]:
    """Return a folder's images in natural order, with the texts that are there.

    The subject is the table's column `subject`, else the subfolder that holds the image, else the folder. The caption is
    the table's, else that of `<stem>.txt`, else, if asked for, the words of the file's name.

    Raises:
        PackingError: no image, or a row of the table that names none.
        FolderError, TableError, TextError: a folder, table or text that cannot be read.
    """
    files = [path for path in list_files(folder) if path.suffix.lower() in IMAGE_SUFFIXES]
    if not files:
        raise PackingError(f"{folder} holds no image ({', '.join(sorted(IMAGE_SUFFIXES))})")
    images = {path: _from_file(path, folder, caption_from_name) for path in files}
    table = folder / CAPTIONS
    for row in Table(table) if table.is_file() else ():
        named = folder / row.required_text("image")
        path = find_file(named) or named
        if path not in images:
            raise PackingError(f"{row.where}: {folder} holds no image {row.cells['image']}")
        old = images[path]
        images[path] = replace(
            old,
            subject=row.text("subject") or old.subject,
            caption=row.text("caption") or old.caption,
            instruction=row.text("instruction") or old.instruction,
        )
    return sorted(images.values(), key=lambda image: natural_key(image.name))


def _from_file(path: Path, folder: Path, caption_from_name: bool) -> OwnImage:
    name = path.relative_to(folder)
    subject = name.parent.as_posix() if len(name.parts) > 1 else folder.resolve().name
    beside = path.with_suffix(".txt")
    caption = (read_text(beside).strip() or None) if beside.is_file() else None
    if caption is None and caption_from_name:
        # A number at the end tells images of one caption apart: "on_a_beach_02.png".
        words = re.sub(r"[_\W]+", " ", re.sub(r"[_\W]*\d+$", "", path.stem)).strip()
        caption = words or None
    return OwnImage(path, name.as_posix(), subject, caption)


def write_captions(folder: Path, images: Sequence[OwnImage]) -> Path:
    """Write the table of captions, which is read before any other caption and can be edited; return it."""
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(["image", "caption", "instruction", "subject"])
    for image in images:
        table.writerow([image.name, image.caption or "", image.instruction or "", image.subject])
    write_text(folder / CAPTIONS, text.getvalue())
    return folder / CAPTIONS


class AllPairs:
    """All ordered pairs of two images of the same subject; caption and instruction are the target's.

    A pair's provenance names the subject and both images, by which training sets some of them aside
    (`shards.split.split_pairs`).

    Args:
        images: at least two of some subject; those of a subject with one are orphans, as are those without a caption.
        trigger: put before every caption and instruction that does not hold it; None: nothing.
    """

    def __init__(self, images: Sequence[OwnImage], trigger: str | None = None) -> None:
        self.orphans: list[Orphan] = []
        self.trigger = trigger
        self.subjects: dict[str, list[OwnImage]] = defaultdict(list)
        for image in images:
            if image.caption is None:
                detail = (
                    f"{image.path} has no caption: write {image.path.with_suffix('.txt').name} beside it or a row of "
                    f"{CAPTIONS}, or let --caption vlm or --caption-from-name do it"
                )
                self.orphans.append(Orphan(image.name, "missing_caption", detail))
            else:
                self.subjects[image.subject].append(image)
        for subject, alone in [(name, of) for name, of in self.subjects.items() if len(of) < _LEAST]:
            detail = f"{alone[0].path} is the only image of the subject '{subject}'; a pair needs two"
            self.orphans.append(Orphan(alone[0].name, "single_image", detail))
            del self.subjects[subject]

    def __len__(self) -> int:
        return sum(len(images) * (len(images) - 1) for images in self.subjects.values())

    def __iter__(self) -> Iterator[Candidate | Orphan]:
        for subject, images in self.subjects.items():
            for target in images:
                for reference in images:
                    if reference is not target:
                        yield self._pair(subject, reference, target)

    def _pair(self, subject: str, reference: OwnImage, target: OwnImage) -> Candidate:
        assert target.caption is not None, "images without a caption are orphans"
        one, other = (Path(image.name).with_suffix("").as_posix() for image in (reference, target))
        return Candidate(
            f"{other}-from-{one}",
            target.path,
            reference.path,
            self._triggered(target.caption),
            None if target.instruction is None else self._triggered(target.instruction),
            {"subject": subject, "reference_image": reference.name, "target_image": target.name},
        )

    def _triggered(self, text: str) -> str:
        return text if self.trigger is None or self.trigger in text else f"{self.trigger}, {text}"
