"""Infers the silhouette of an image: the one of the world's 720 that best explains which pixels are background.

A generated image has no depth and no mask; they are inferred. What a character looks like is not used, nor what was asked
for: only that everything outside the character is the world's background, of any colour, kind and light, with the shadow
that the character throws. For each silhouette and each kind of background the best colour is found in closed form; pixels
inside cost `INSIDE` each, pixels outside their squared error. "No character" is one of the candidates, so that an empty
image has an empty mask. Scene of the silhouette found: its mask and its depth are known exactly.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from dsd_lightning.miniature import shapes
from dsd_lightning.miniature.candidates import pooled
from dsd_lightning.miniature.renderer import (
    DARKER,
    RESOLUTION,
    darkened,
    glow,
    light_direction,
    outline_of,
    placed,
    render,
    shade,
)
from dsd_lightning.miniature.world import (
    ACCESSORIES,
    BACKGROUND_KINDS,
    LIGHT_DIRECTIONS,
    PLACES,
    ROTATIONS,
    SHAPES,
    SIZES,
    Context,
    Identity,
    Scene,
)

INSIDE = 0.018
"""Cost of a pixel inside the silhouette: the squared error (colours in [0, 1], mean of the channels) up to which a pixel
outside is taken for background."""

Cover = NDArray[np.float32]
Key = tuple[int, ...]


@dataclass(frozen=True)
class Silhouettes:
    """The world's silhouettes, the last of which is "no character".

    Attributes:
        keys: (shape, accessory, place, size, rotation) of each; () of "no character".
        masks: [721, 64 * 64], True where the character covers at least half of a pixel.
        depths: [721, 64 * 64], in (0, 1], far is 1.
    """

    keys: tuple[Key, ...]
    masks: NDArray[np.bool_]
    depths: NDArray[np.float32]

    def index(self, scene: Scene) -> int:
        """Return the position of a scene's silhouette."""
        return self.keys.index(key_of(scene))


def key_of(scene: Scene) -> Key:
    """Return the attributes that a scene's silhouette depends on."""
    who, where = scene.identity, scene.context
    return (who.shape, who.accessory, where.place, where.size, where.rotation)


def _scene(key: Key) -> Scene:
    shape, accessory, place, size, rotation = key
    return Scene(Identity(shape, 0, 1, 0, accessory, 0), Context(place, size, rotation, 0, 0, 0, 0, 0))


@lru_cache(maxsize=1)
def silhouettes() -> Silhouettes:
    """Return all silhouettes, computed once a process."""
    sizes = (len(SHAPES), len(ACCESSORIES), len(PLACES), len(SIZES), len(ROTATIONS))
    keys = tuple(tuple(map(int, key)) for key in np.ndindex(*sizes))
    drawn = [render(_scene(key)) for key in keys]
    masks = np.stack([each.mask.ravel() >= 0.5 for each in drawn] + [np.zeros(RESOLUTION**2, dtype=bool)])
    plane = np.max([each.depth for each in drawn], axis=0).ravel()
    depths = np.stack([each.depth.ravel() for each in drawn] + [plane])
    return Silhouettes((*keys, ()), masks, depths)


def _pooled_fields(fields: list[NDArray[np.float32]]) -> Cover:
    """Return fields [64, 64] as the search sees them: [n, 32 * 32]."""
    return pooled(np.stack(fields)[:, None])


@dataclass(frozen=True)
class _Search:
    """What explains an image: covers [2, 721, 32 * 32] (without, with outline) and backgrounds [15, 181, 32 * 32]."""

    covers: NDArray[np.float32]
    backgrounds: NDArray[np.float32]
    body: NDArray[np.intp]
    """For each silhouette, which of the 181 backgrounds its body belongs to: its shadow."""


@lru_cache(maxsize=1)
def _search() -> _Search:
    all_silhouettes = silhouettes()
    plain, outlined = [], []
    bodies: dict[Key, int] = {}
    for key in all_silhouettes.keys[:-1]:
        scene = _scene(key)
        placement = placed(scene.context)
        body = shapes.BODIES[scene.identity.word("shape")](placement.u, placement.v)
        accessory = shapes.ACCESSORIES[scene.identity.word("accessory")][0](placement.u, placement.v)
        mask = render(scene).mask
        plain.append(mask)
        outlined.append(np.maximum(mask, outline_of(np.minimum(body, accessory), placement.radius)))
        bodies.setdefault((key[0], *key[2:]), len(bodies))
    nothing = np.zeros((RESOLUTION, RESOLUTION), dtype=np.float32)
    covers = np.stack([_pooled_fields([*plain, nothing]), _pooled_fields([*outlined, nothing])])
    shared = [bodies[(key[0], *key[2:])] for key in all_silhouettes.keys[:-1]] + [len(bodies)]

    backgrounds = []
    for kind in range(len(BACKGROUND_KINDS)):
        for direction in range(len(LIGHT_DIRECTIONS)):
            backgrounds.append(_backgrounds(kind, direction, tuple(bodies)))
    return _Search(covers, np.stack(backgrounds), np.asarray(shared))


def _backgrounds(kind: int, direction: int, bodies: tuple[Key, ...]) -> Cover:
    """Return the brightness [181, 32 * 32] of a kind of background under a light, with each body's shadow and with none."""
    towards = light_direction(Context(0, 0, 0, kind, 0, direction, 0, 0))
    lit = (1 - np.float32(1 - DARKER) * darkened(BACKGROUND_KINDS[kind])) * glow(towards)
    fields = []
    for shape, place, size, rotation in bodies:
        placement = placed(Context(place, size, rotation, 0, 0, 0, 0, 0))
        fields.append(lit * shade(SHAPES[shape], placement, towards))
    return _pooled_fields([*fields, lit])


def infer_silhouettes(images: NDArray[np.float32]) -> list[int]:
    """Return, for images [n, 3, 64, 64] in [-1, 1], the positions in `silhouettes()` of what they show."""
    search = _search()
    colors = (pooled(images) + 1) / 2
    count = len(colors)
    # Channels are fitted one by one, so that they are as good as images of their own: [32 * 32, 3 * n].
    values = np.ascontiguousarray(colors.reshape(count * 3, -1).T)
    best = np.full(count, np.inf, dtype=np.float32)
    chosen = np.zeros(count, dtype=np.intp)
    for cover in search.covers:
        outside = 1 - cover
        total = outside @ values**2
        price = 3 * INSIDE * cover.sum(axis=1, keepdims=True)
        for background in search.backgrounds:
            explained = outside * background[search.body]
            norm = np.einsum("gx,gx->g", explained, background[search.body])[:, None]
            error = total - (explained @ values) ** 2 / norm
            cost = error.reshape(len(cover), count, 3).sum(axis=2) + price
            winner = cost.argmin(axis=0)
            lowest = cost[winner, np.arange(count)]
            chosen = np.where(lowest < best, winner, chosen)
            best = np.minimum(lowest, best)
    return [int(index) for index in chosen]
