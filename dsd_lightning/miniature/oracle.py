"""Identifies the character in an image among all 16,128: where two fit about as well, the answer is ambiguous.

The oracle sees pixels alone: neither a caption nor what was asked for. It finds the context by descent over layouts (with
all colours tried in each, `planes`), then holds the image against every identity in that context: 288 layouts with 56
colourings, each under all colours of light and ground. An image is *ambiguous* if even the nearest rendering is far from
it, or if another identity comes nearly as near. tests/miniature/test_oracle.py and benchmarks/oracle.py measure its error
rate.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import product
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from dsd_lightning.miniature import planes
from dsd_lightning.miniature.planes import COLORINGS, LAYOUT, Layout
from dsd_lightning.miniature.renderer import render
from dsd_lightning.miniature.world import Context, Identity, Scene

FARTHEST = 0.20
"""Greatest distance of an image from its nearest rendering, RMS RGB difference on the [-1, 1] scale, 2 x 2 pooled.

The error of a soft image is on the character, so it grows with the character's size: 0.16 fitted bodies 1.25 times smaller.
What is farther was mostly searched for in the wrong place: the search can end in a local optimum.
"""

CLEARLY_NEARER = 1.1
"""Least ratio of the distance of the nearest other identity to that of the nearest one.

Chosen on rendered images that were blurred until they were about as far from any rendering as generated ones are, and passed
through the VAE (`python -m benchmarks.oracle --blur 2 2`): of 120 it identifies 54 % at this ratio, 1.5 % of them wrongly; at
1.02, 78 % and 5 % of them.
"""

STARTS = 5
"""Poses in which a descent over layouts starts: the best ones of different accessory or rotation."""

FOLLOWED = 2
"""Descents that are followed to their ends after a first pass."""

RENDERED = 24
"""Identities, the nearest by closed form, whose exact (clipped) renderings decide."""

SWEEPS = 3
"""Passes over all moves of a descent; it ends earlier when a pass changes nothing."""

_SIZES = {name: len({**Identity.vocabulary, **Context.vocabulary}[name]) for name in LAYOUT}
_MOVES = (
    ("background_kind",),
    ("light_direction",),
    ("style",),
    ("shape", "rotation"),
    ("place", "size"),
    ("accessory", "rotation"),
    ("pattern", "face"),
)
_POSE = ("place", "size", "background_kind")
_WHO = ("shape", "pattern", "accessory", "face")

_COLOR_BASE = 64

Measure = Callable[[Layout], float]
Same = Literal["yes", "no", "ambiguous"]


@dataclass(frozen=True)
class Sighting:
    """What the oracle sees in one image.

    Attributes:
        scene: the nearest rendering's scene.
        distance: how far that rendering is.
        rival: distance of the nearest rendering of any other identity in the same context.
        distances: of all identities in that context, before renderings are clipped, in a fixed order [16128].
    """

    scene: Scene
    distance: float
    rival: float
    distances: NDArray[np.floating[Any]]

    @property
    def ambiguous(self) -> bool:
        """Whether the image shows no character, or one that cannot be told from another."""
        return self.distance > FARTHEST or self.rival < CLEARLY_NEARER * self.distance


def _changed(layout: Layout, names: tuple[str, ...]) -> Iterator[Layout]:
    """Yield `layout` with every combination of values of `names`."""
    positions = [LAYOUT.index(name) for name in names]
    for values in product(*(range(_SIZES[name]) for name in names)):
        changed = list(layout)
        for position, value in zip(positions, values, strict=True):
            changed[position] = value
        yield tuple(changed)


def see(image: NDArray[np.floating[Any]]) -> Sighting:
    """Return what an image [64, 64, 3] with values in [0, 1] shows."""
    wanted = planes.pooled(np.asarray(image, dtype=np.float32))
    computed: dict[Layout, float] = {}

    def distance(layout: Layout) -> float:
        if layout not in computed:
            computed[layout] = float(planes.distances(wanted, layout).min())
        return computed[layout]

    begun = sorted({_descend(start, distance, 1) for start in _starts(distance)}, key=distance)
    best = min((_descend(each, distance) for each in begun[:FOLLOWED]), key=distance)
    for _ in range(SWEEPS):
        nearest = min(_changed(best, _WHO), key=distance)
        settled = _descend(nearest, distance)
        if settled == best:
            break
        best = settled
    return _against_all(wanted, best)


def _starts(distance: Measure) -> list[Layout]:
    """Return the best poses of a round body, one for each accessory and rotation, the likeliest first."""
    looks = _changed((0,) * len(LAYOUT), ("accessory", "rotation"))
    return sorted((min(_changed(look, _POSE), key=distance) for look in looks), key=distance)[:STARTS]


def _descend(layout: Layout, distance: Measure, sweeps: int = SWEEPS) -> Layout:
    for _ in range(sweeps):
        before = layout
        for names in _MOVES:
            layout = min(_changed(layout, names), key=distance)
        if layout == before:
            break
    return layout


def _against_all(wanted: NDArray[np.floating[Any]], layout: Layout) -> Sighting:
    """Return the nearest identity, and how near the next one is, in the context of a layout."""
    who: dict[tuple[int, ...], tuple[float, Layout, int]] = {}
    distances = []
    body_and_second = COLORINGS[:, 2] * _COLOR_BASE + COLORINGS[:, 3]
    for each in _changed(layout, _WHO):
        by_coloring = planes.distances(wanted, each)
        order = np.argsort(by_coloring, kind="stable")
        _, first = np.unique(body_and_second[order], return_index=True)
        distances.append(by_coloring[order[first]])
        for coloring in order[np.sort(first)[:RENDERED]]:
            key = (*each[: len(_WHO)], int(body_and_second[coloring]))
            who[key] = (float(by_coloring[coloring]), each, int(coloring))
    scenes = [planes.scene_of(each, coloring) for _, each, coloring in sorted(who.values())[:RENDERED]]
    exact = [float(2 * np.sqrt(np.mean((planes.pooled(render(scene).image) - wanted) ** 2))) for scene in scenes]
    nearest, rival = np.argsort(exact, kind="stable")[:2]
    return Sighting(scenes[nearest], exact[nearest], exact[rival], np.concatenate(distances))


def same_identity(one: Sighting, other: Sighting) -> Same:
    """Return whether two images show one character.

    Who it is must be clear in both for a yes. For a no it is enough that nobody fits both about as well as somebody fits
    each: two blurs of different colours are not the same, whoever they are.
    """
    if not one.ambiguous and not other.ambiguous:
        return "yes" if one.scene.identity == other.scene.identity else "no"
    if max(one.distance, other.distance) > FARTHEST:
        return "ambiguous"
    worse = np.maximum(*(each.distances / each.distances.min() for each in (one, other)))
    return "no" if worse.min() >= CLEARLY_NEARER else "ambiguous"
