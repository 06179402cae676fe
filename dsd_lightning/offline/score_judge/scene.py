"""Reads a miniature scene from the pixels of an image: the character and its context.

First the silhouette (`miniature.geometry`), then kind, colour and light of the background in closed form, then the
character's surface: style and face by exact renderings, colours and pattern by renderings that are combined.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import lru_cache
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from dsd_lightning.miniature import geometry, shapes
from dsd_lightning.miniature.candidates import distances, pooled
from dsd_lightning.miniature.renderer import (
    DARKER,
    LIGHT_RGB,
    RESOLUTION,
    darkened,
    glow,
    light_direction,
    placed,
    render,
    shade,
)
from dsd_lightning.miniature.world import (
    BACKGROUND_KINDS,
    BACKGROUND_PALETTE,
    LIGHT_DIRECTIONS,
    PALETTE,
    SHAPES,
    Context,
    Identity,
    Scene,
)

SWEEPS = 2
"""Passes over the surface; the search ends earlier when the style that it started from holds."""

_BASIS = ("green", "purple", "red")
"""Colours that no light makes white, and that differ from each other in every channel."""

DIMMEST, BRIGHTEST = 0.5, 1.15
"""Range of the light that a surface reflects, as the renderer has it."""

Pixels = NDArray[np.float32]
"""An image [3, 64, 64] in [-1, 1]."""


def as_pixels(image: Image.Image) -> Pixels:
    """Return an image of any size as the world has it; larger ones are averaged over blocks."""
    if image.size != (RESOLUTION, RESOLUTION):
        image = image.resize((RESOLUTION, RESOLUTION), Image.Resampling.BOX)
    values = np.asarray(image.convert("RGB"), dtype=np.float32) / np.float32(127.5) - np.float32(1)
    return np.ascontiguousarray(values.transpose(2, 0, 1))


def infer_scene(image: Pixels) -> Scene | None:
    """Return the scene that an image shows, or None where it shows no character of the world."""
    silhouettes = geometry.silhouettes()
    key = silhouettes.keys[geometry.infer_silhouettes(image[None])[0]]
    if not key:
        return None
    shape, accessory, place, size, rotation = key
    outside = ~silhouettes.masks[silhouettes.keys.index(key)]
    context = _background(image, SHAPES[shape], outside, Context(place, size, rotation, 0, 0, 0, 0, 0))
    first, second = _surface_colors(image, shape, accessory, context)
    return _surface(image, Scene(Identity(shape, first, second, 0, accessory, 0), context))


def _background(image: Pixels, shape: str, outside: NDArray[np.bool_], context: Context) -> Context:
    """Return `context` with the background and the light that best explain the pixels outside the character."""
    values = ((image + 1) / 2).reshape(3, -1)[:, outside]
    colors = np.asarray(list(BACKGROUND_PALETTE.values()), dtype=np.float32)
    shone = colors[:, None] * np.asarray(list(LIGHT_RGB.values()), dtype=np.float32)[None]
    best = (np.inf, context)
    placement = placed(context)
    for direction in range(len(LIGHT_DIRECTIONS)):
        lit = replace(context, light_direction=direction)
        towards = light_direction(lit)
        falling = glow(towards) * shade(shape, placement, towards)
        for kind, name in enumerate(BACKGROUND_KINDS):
            field = (falling * (1 - np.float32(1 - DARKER) * darkened(name))).ravel()[outside]
            cost = shone**2 * (field @ field) - 2 * shone * (values @ field)
            total = cost.sum(axis=-1)
            color, light = np.unravel_index(int(total.argmin()), total.shape)
            if total[color, light] < best[0]:
                chosen = replace(lit, background_kind=kind, background_color=int(color), light_color=int(light))
                best = (float(total[color, light]), chosen)
    return best[1]


def _surface_colors(image: Pixels, shape: int, accessory: int, context: Context) -> tuple[int, int]:
    """Return the two colours of which most of the body seems to be, whatever the light on each pixel."""
    scene = Scene(Identity(shape, 0, 1, 0, accessory, 0), context)
    placement = placed(context)
    body = shapes.BODIES[scene.identity.word("shape")](placement.u, placement.v) < -0.05
    body &= shapes.ACCESSORIES[scene.identity.word("accessory")][0](placement.u, placement.v) > 0.05
    face = (np.abs(placement.u) < 0.66) & (np.abs(placement.v - 0.05) < 0.45)
    inside = body & ~face if (body & ~face).sum() >= 40 else body
    light = np.asarray(LIGHT_RGB[context.word("light_color")], dtype=np.float32)
    values = ((image + 1) / 2)[:, inside].T / light
    palette = np.asarray(list(PALETTE.values()), dtype=np.float32)
    brightness = np.clip(values @ palette.T / (palette**2).sum(axis=1), DIMMEST, BRIGHTEST)
    error = ((values[:, None] - brightness[..., None] * palette) ** 2).sum(axis=-1)
    order = np.bincount(error.argmin(axis=1), minlength=len(palette)).argsort()[::-1]
    return int(order[0]), int(order[1])


def _surface(image: Pixels, start: Scene) -> Scene:
    """Return the scene with the style, colours, pattern and face that come nearest to the image."""
    wanted = pooled(image[None])[0]
    computed: dict[Scene, float] = {}

    def distance(scene: Scene) -> float:
        if scene not in computed:
            computed[scene] = float(distances(wanted, _drawn(scene)[None])[0])
        return computed[scene]

    best = min(_others(start, "style"), key=distance)
    for _ in range(SWEEPS):
        style = best.context.style
        best = _colors_and_pattern(wanted, best)
        best = min(_others(best, "face"), key=distance)
        best = min(_others(best, "style"), key=distance)
        if best.context.style == style:
            break
    return best


def _drawn(scene: Scene) -> NDArray[np.float32]:
    image = render(scene).image.transpose(2, 0, 1) * np.float32(2) - np.float32(1)
    return pooled(image[None])[0]


def _colors_and_pattern(wanted: NDArray[np.float32], scene: Scene) -> Scene:
    """Return the scene with the best of all colours and patterns.

    A rendering is linear in both colours where nothing is clipped, so three renderings of a pattern, in colours that are
    dark enough, tell all fifty-six.
    """
    names = Identity.vocabulary["color"]
    palette = np.asarray([PALETTE[name] for name in names], dtype=np.float32)
    one, other, third = (names.index(name) for name in _BASIS)
    pairs = [(first, second) for first in range(len(names)) for second in range(len(names)) if first != second]
    firsts, seconds = (palette[[pair[side] for pair in pairs]][..., None] for side in range(2))
    best = (np.inf, scene)
    for pattern in range(len(Identity.vocabulary["pattern"])):
        who = replace(scene.identity, pattern=pattern)
        both, without, swapped = (
            (_drawn(replace(scene, identity=replace(who, color=first, second_color=second))).reshape(3, -1) + 1) / 2
            for first, second in ((one, third), (other, third), (one, other))
        )
        of_first = (both - without) / (palette[one] - palette[other])[:, None]
        of_second = (both - swapped) / (palette[third] - palette[other])[:, None]
        rest = both - of_first * palette[one][:, None] - of_second * palette[third][:, None]
        predicted = np.clip(rest + of_first * firsts + of_second * seconds, 0, 1) * 2 - 1
        apart = distances(wanted, predicted.reshape(len(pairs), -1))
        nearest = int(apart.argmin())
        if apart[nearest] < best[0]:
            color, second = pairs[nearest]
            best = (float(apart[nearest]), replace(scene, identity=replace(who, color=color, second_color=second)))
    return best[1]


def _others(scene: Scene, name: str) -> Iterator[Scene]:
    """Yield the scene with every value of one attribute, its own first."""
    part = scene.context if name in Context.vocabulary else scene.identity
    own = getattr(part, name)
    for value in sorted(range(len(part.vocabulary[name])), key=lambda each: each != own):
        changed: Any = replace(cast(Any, part), **{name: value})
        yield replace(scene, context=changed) if isinstance(changed, Context) else replace(scene, identity=changed)


@lru_cache(maxsize=4096)
def scene_of(data: bytes, side: int = RESOLUTION) -> Scene | None:
    """Return the scene of raw 8-bit RGB pixels [side, side, 3], remembered: one image is judged several times."""
    return infer_scene(as_pixels(Image.frombytes("RGB", (side, side), data)))
