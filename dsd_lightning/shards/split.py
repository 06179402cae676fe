"""Divides a set into pairs to train on and pairs to validate on: by image or subject where pairs share them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dsd_lightning.randomness import uniform
from dsd_lightning.shards.reader import PairShards

SHARE = 5
"""At most one in so many pairs, images or subjects is set aside."""

_LEAST_IMAGES = 5
"""Images of a subject from which some can be set aside."""


@dataclass(frozen=True)
class Split:
    """Positions to train on and to validate on, how many pairs are neither, and what was drawn: pair, image or subject."""

    training: list[int]
    validation: list[int]
    left_out: int = 0
    by: str = "pair"

    def __str__(self) -> str:
        """The counts, as logs show them."""
        mixed = f"; {self.left_out} pairs of one image from each are left out" if self.left_out else ""
        drawn = f"set aside by {self.by}{mixed}"
        return f"{len(self.training)} pairs train, {len(self.validation)} validate ({drawn})"


def split_pairs(shards: PairShards, count: int) -> Split:
    """Return the split of a set; which samples are set aside is decided by hashes, and so always the same.

    Where pairs share images (their provenance names subject, reference_image and target_image, as packing all pairs of a
    folder writes it), whole subjects are set aside if there are five or more, otherwise images of each subject: then
    neither references nor targets nor captions of the validation are trained on.

    Args:
        shards: the set.
        count: pairs that validate at most; a fifth of the set's pairs, images or subjects is the limit.
    """
    if not count or not len(shards):
        return Split(list(range(len(shards))), [])
    if not _shares(shards.record(0).provenance):
        aside, rest = first_by_hash(shards, min(count, max(1, len(shards) // SHARE) if len(shards) > 1 else 0))
        return Split(rest, aside)
    origins = [shards.record(position).provenance for position in range(len(shards))]
    images: dict[str, set[str]] = defaultdict(set)
    for origin in origins:
        images[origin["subject"]] |= {origin["reference_image"], origin["target_image"]}
    if len(images) >= SHARE:
        return _by_subject(shards, origins, images, count)
    return _by_image(shards, origins, images, count)


def first_by_hash(shards: PairShards, count: int) -> tuple[list[int], list[int]]:
    """Return the positions of the `count` samples whose keys have the lowest hashes, and those of the others."""
    by_hash = sorted(range(len(shards)), key=lambda position: uniform("validation", shards.keys[position]))
    return sorted(by_hash[:count]), sorted(by_hash[count:])


def _shares(origin: Mapping[str, Any]) -> bool:
    return all(isinstance(origin.get(name), str) for name in ("subject", "reference_image", "target_image"))


def _by_hash(names: set[str]) -> list[str]:
    return sorted(names, key=lambda name: uniform("validation", name))


def _by_subject(
    shards: PairShards, origins: Sequence[Mapping[str, Any]], images: Mapping[str, set[str]], count: int
) -> Split:
    aside: set[str] = set()
    for subject in _by_hash(set(images))[: len(images) // SHARE]:
        if sum(origin["subject"] in aside for origin in origins) < count:
            aside.add(subject)
    inside = [position for position, origin in enumerate(origins) if origin["subject"] in aside]
    training = [position for position, origin in enumerate(origins) if origin["subject"] not in aside]
    return Split(training, _fewest(shards, inside, count), 0, "subject")


def _by_image(
    shards: PairShards, origins: Sequence[Mapping[str, Any]], images: Mapping[str, set[str]], count: int
) -> Split:
    aside: set[str] = set()
    inside: list[int] = []
    for number in range(2, max(2, max(map(len, images.values())) // SHARE) + 1):
        if len(inside) >= count:
            break
        aside = {
            name
            for of in images.values()
            if len(of) >= _LEAST_IMAGES
            for name in _by_hash(of)[: min(number, max(2, len(of) // SHARE))]
        }
        inside = [p for p, origin in enumerate(origins) if {origin["reference_image"], origin["target_image"]} <= aside]
    training = [
        p for p, origin in enumerate(origins) if not {origin["reference_image"], origin["target_image"]} & aside
    ]
    mixed = len(origins) - len(training) - len(inside)
    return Split(training, _fewest(shards, inside, count), mixed, "image")


def _fewest(shards: PairShards, positions: list[int], count: int) -> list[int]:
    """Return the `count` of the positions whose keys have the lowest hashes, in order."""
    return sorted(sorted(positions, key=lambda position: uniform("validation", shards.keys[position]))[:count])
