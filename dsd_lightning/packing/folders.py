"""Which pairs are in two folders? Target and reference of the same relative stem, with captions in <stem>.txt."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

from dsd_lightning.packing.candidates import IMAGE_SUFFIXES, Candidate, Orphan, PackingError, clean_text

_CAPTION_SUFFIX = ".txt"


def _by_stem(folder: Path, suffixes: frozenset[str], leave_out: Path | None = None) -> dict[str, list[Path]]:
    """Return the files below `folder` by their path within it, less the suffix; hidden ones do not count."""
    found: dict[str, list[Path]] = defaultdict(list)
    for path in sorted(folder.rglob("*")):
        relative = path.relative_to(folder)
        hidden = any(part.startswith(".") for part in relative.parts)
        outside = leave_out is not None and path.is_relative_to(leave_out)
        if path.suffix.lower() in suffixes and path.is_file() and not hidden and not outside:
            found[relative.with_suffix("").as_posix()].append(path)
    return found


class PairedFolders:
    """A folder of targets with captions, and a folder of references (none for a task without reference).

    Args:
        targets: folder of target images and their <stem>.txt captions; folders within it are searched too.
        references: folder of reference images of the same stems; None for a task without.

    Raises:
        PackingError: a folder is missing, or holds no image.
    """

    def __init__(self, targets: Path, references: Path | None) -> None:
        self.orphans: list[Orphan] = []
        for folder in (targets, references):
            if folder is not None and not folder.is_dir():
                raise PackingError(f"{folder} is not a folder")
        targets, references = targets.resolve(), references.resolve() if references is not None else None
        self._references = self._unambiguous(_by_stem(references, IMAGE_SUFFIXES), "reference") if references else {}
        self._has_references = references is not None
        self._targets = self._unambiguous(_by_stem(targets, IMAGE_SUFFIXES, references), "target")
        self._captions = _by_stem(targets, frozenset({_CAPTION_SUFFIX}), references)
        for folder, images in ((targets, self._targets), (references, self._references)):
            if folder is not None and not images:
                raise PackingError(f"{folder} holds no image ({', '.join(sorted(IMAGE_SUFFIXES))})")
        self._stems = self._complete(targets, references)

    def _unambiguous(self, found: dict[str, list[Path]], frame: str) -> dict[str, Path]:
        for stem, paths in found.items():
            if len(paths) > 1:
                names = ", ".join(path.name for path in paths)
                self.orphans.append(Orphan(stem, f"ambiguous_{frame}", f"several images have this stem: {names}"))
        return {stem: paths[0] for stem, paths in found.items() if len(paths) == 1}

    def _complete(self, targets: Path, references: Path | None) -> list[str]:
        """Return the stems that have all their files, and note every other as an orphan."""
        complete = []
        ambiguous = {orphan.name for orphan in self.orphans}
        for stem in sorted(self._targets.keys() - ambiguous):
            if references is not None and stem not in self._references:
                detail = f"{self._targets[stem]} has no image '{stem}' in {references}"
                self.orphans.append(Orphan(stem, "missing_reference", detail))
            elif stem not in self._captions:
                detail = f"{self._targets[stem]} has no caption beside it: {stem}{_CAPTION_SUFFIX} is missing"
                self.orphans.append(Orphan(stem, "missing_caption", detail))
            else:
                complete.append(stem)
        for stem in sorted(self._references.keys() - self._targets.keys() - ambiguous):
            detail = f"{self._references[stem]} has no image '{stem}' in {targets}"
            self.orphans.append(Orphan(stem, "missing_target", detail))
        for stem in sorted(self._captions.keys() - self._targets.keys() - self._references.keys() - ambiguous):
            detail = f"{self._captions[stem][0]} has no image '{stem}' beside it"
            self.orphans.append(Orphan(stem, "caption_without_target", detail))
        return complete

    def __len__(self) -> int:
        return len(self._stems)

    def __iter__(self) -> Iterator[Candidate | Orphan]:
        for stem in self._stems:
            path = self._captions[stem][0]
            try:
                caption = clean_text(path.read_text(encoding="utf-8-sig"))
            except UnicodeDecodeError:
                yield Orphan(stem, "unreadable_caption", f"{path} is not UTF-8 text; save it as UTF-8")
                continue
            if caption is None:
                yield Orphan(stem, "missing_caption", f"{path} is empty")
                continue
            reference = self._references[stem] if self._has_references else None
            yield Candidate(stem, self._targets[stem], reference, caption, provenance={"source": stem})
