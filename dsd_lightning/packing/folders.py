"""Pairs the images of two folders: target and reference of the same relative stem, with captions in <stem>.txt."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

from dsd_lightning.files.listing import list_files, natural_key, normalised
from dsd_lightning.files.text import TextError, read_text
from dsd_lightning.packing.candidates import IMAGE_SUFFIXES, Candidate, Orphan, PackingError

_CAPTION_SUFFIX = ".txt"
_ByStem = dict[str, list[Path]]


class PairedFolders:
    """A folder of targets with captions, and a folder of references (none for a task without reference).

    Args:
        targets: folder of target images and their <stem>.txt captions; folders within it are searched too.
        references: folder of reference images of the same stems; None for a task without.

    Raises:
        PackingError: a folder holds no image.
        FolderError: a folder is missing, or a link in it leads back to a folder above.
    """

    def __init__(self, targets: Path, references: Path | None) -> None:
        self.orphans: list[Orphan] = []
        self._captions: _ByStem = {}
        self._has_references = references is not None
        self._references = self._images(references, "reference") if references is not None else {}
        self._targets = self._images(targets, "target", leave_out=references)
        self._stems = self._complete(targets, references)

    def _images(self, folder: Path, frame: str, leave_out: Path | None = None) -> dict[str, Path]:
        """Return a folder's images by stem; note the captions of targets, and as orphans what cannot be used."""
        images: _ByStem = defaultdict(list)
        captions: _ByStem = defaultdict(list)
        outside = leave_out.resolve() if leave_out is not None else None
        for path in list_files(folder):
            if outside is not None and path.parent.resolve().is_relative_to(outside):
                continue
            stem = normalised(path.relative_to(folder).with_suffix("").as_posix())
            if path.suffix.lower() in IMAGE_SUFFIXES:
                images[stem].append(path)
            elif path.suffix.lower() == _CAPTION_SUFFIX:
                captions[stem].append(path)
            else:
                self.orphans.append(
                    Orphan(stem, "other_file", f"{path} is neither an image nor a caption", expected=True)
                )
        if not images:
            raise PackingError(f"{folder} holds no image ({', '.join(sorted(IMAGE_SUFFIXES))})")
        if frame == "target":
            self._captions = captions
        for stem, paths in images.items():
            if len(paths) > 1:
                names = ", ".join(path.name for path in paths)
                self.orphans.append(Orphan(stem, f"ambiguous_{frame}", f"several images have this stem: {names}"))
        return {stem: paths[0] for stem, paths in images.items() if len(paths) == 1}

    def _complete(self, targets: Path, references: Path | None) -> list[str]:
        """Return the stems that have all their files, and note every other as an orphan."""
        complete = []
        ambiguous = {orphan.name for orphan in self.orphans if orphan.reason.startswith("ambiguous")}

        def ordered(stems: set[str]) -> list[str]:
            return sorted(stems - ambiguous, key=natural_key)

        for stem in ordered(set(self._targets)):
            if references is not None and stem not in self._references:
                detail = f"{self._targets[stem]} has no image '{stem}' in {references}"
                self.orphans.append(Orphan(stem, "missing_reference", detail))
            elif stem not in self._captions:
                detail = f"{self._targets[stem]} has no caption beside it: {stem}{_CAPTION_SUFFIX} is missing"
                self.orphans.append(Orphan(stem, "missing_caption", detail))
            else:
                complete.append(stem)
        for stem in ordered(self._references.keys() - self._targets.keys()):
            detail = f"{self._references[stem]} has no image '{stem}' in {targets}"
            self.orphans.append(Orphan(stem, "missing_target", detail))
        for stem in ordered(self._captions.keys() - self._targets.keys() - self._references.keys()):
            detail = f"{self._captions[stem][0]} has no image '{stem}' beside it"
            self.orphans.append(Orphan(stem, "caption_without_target", detail))
        return complete

    def __len__(self) -> int:
        return len(self._stems)

    def __iter__(self) -> Iterator[Candidate | Orphan]:
        for stem in self._stems:
            path = self._captions[stem][0]
            try:
                caption = read_text(path).strip()
            except TextError as error:
                yield Orphan(stem, "unreadable_caption", str(error))
                continue
            if not caption:
                yield Orphan(stem, "missing_caption", f"{path} is empty")
                continue
            reference = self._references[stem] if self._has_references else None
            yield Candidate(stem, self._targets[stem], reference, caption, provenance={"source": stem})
