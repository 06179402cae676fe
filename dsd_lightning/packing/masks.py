"""Adds masks of subjects to the pairs of a folder: images of the targets' relative stems in a folder of their own."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from dsd_lightning.files.listing import list_files, normalised
from dsd_lightning.packing.candidates import IMAGE_SUFFIXES, Candidate, Orphan, PackingError, Source


class Masked:
    """The pairs of `source`, each with its target's mask where the folder has one.

    A mask is white where the target shows the subject. Masks that belong to no target are orphans.

    Args:
        source: pairs whose targets are files in `targets`.
        targets: folder of the targets.
        masks: folder of the masks, outside of `targets`.

    Raises:
        PackingError: the folder of masks is in that of the targets, holds no image, or several of one stem.
        FolderError: a folder is missing.
    """

    def __init__(self, source: Source, targets: Path, masks: Path) -> None:
        self.source, self.targets = source, targets
        if masks.resolve().is_relative_to(targets.resolve()):
            raise PackingError(f"the masks in {masks} would be taken for images of {targets}; move them out of it")
        self.masks = _by_stem(masks)
        stems = set(_stems(targets))
        self.orphans = [
            *source.orphans,
            *(
                Orphan(stem, "mask_without_target", f"{path} has no image '{stem}' in {targets}")
                for stem, path in self.masks.items()
                if stem not in stems
            ),
        ]

    def __len__(self) -> int:
        return len(self.source)

    def __iter__(self) -> Iterator[Candidate | Orphan]:
        for each in self.source:
            if isinstance(each, Candidate) and isinstance(each.target, Path):
                yield replace(each, mask=self.masks.get(_stem(each.target, self.targets)))
            else:
                yield each


def _stem(path: Path, folder: Path) -> str:
    return normalised(path.relative_to(folder).with_suffix("").as_posix())


def _stems(folder: Path) -> Iterator[str]:
    return (_stem(path, folder) for path in list_files(folder) if path.suffix.lower() in IMAGE_SUFFIXES)


def _by_stem(folder: Path) -> dict[str, Path]:
    images = [path for path in list_files(folder) if path.suffix.lower() in IMAGE_SUFFIXES]
    by_stem = {_stem(path, folder): path for path in images}
    if not images:
        raise PackingError(f"{folder} holds no image ({', '.join(sorted(IMAGE_SUFFIXES))})")
    if len(by_stem) < len(images):
        raise PackingError(f"{folder} holds {len(images) - len(by_stem)} masks too many: a stem may have one")
    return by_stem
