"""Fits all colours of one layout at once: the distance of an image from every choice of colours, in closed form.

A *layout* is everything of a scene but its colours: shape, pattern, accessory, face, and of the context place, size,
rotation, kind of ground, direction of light and style. The renderer's image is, before it is clipped to [0, 1], linear
in the colours of ground, body and pattern and in the colour of the light. So one rendering of planes a layout gives the
squared distance of an image from all its 6 x 8 x 7 x 3 colourings.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dsd_lightning.miniature import renderer, shapes
from dsd_lightning.miniature.renderer import LIGHT_RGB
from dsd_lightning.miniature.world import BACKGROUND_PALETTE, PALETTE, Context, Identity, Scene

Values = NDArray[np.floating[Any]]

LAYOUT = (
    *("shape", "pattern", "accessory", "face"),
    *("place", "size", "rotation", "background_kind", "light_direction", "style"),
)
"""The attributes of a layout, in the order of its tuple of indices."""

Layout = tuple[int, ...]

MEMORY = 4096
"""Layouts whose planes are kept, 28 KiB each."""

_OUTLINE_RGB = (0.05, 0.05, 0.08)
_POOL = 2
_SIDE = renderer.RESOLUTION // _POOL


def _colorings() -> tuple[NDArray[np.int64], Values]:
    """Return the indices [n, 4] of light colour, ground, body and pattern, and their terms [3, n, 5] by channel."""
    lights, grounds, colors = (np.asarray(list(each.values())) for each in (LIGHT_RGB, BACKGROUND_PALETTE, PALETTE))
    indices = np.stack(
        np.meshgrid(*(np.arange(len(each)) for each in (lights, grounds, colors, colors)), indexing="ij"), axis=-1
    ).reshape(-1, 4)
    indices = indices[indices[:, 2] != indices[:, 3]]
    light = lights[indices[:, 0]]
    terms = [light * grounds[indices[:, 1]], light * colors[indices[:, 2]], light * colors[indices[:, 3]], light]
    stacked = np.stack([*terms, np.ones_like(light)], axis=-1)  # [n, 3, 5]
    return indices, stacked.transpose(1, 0, 2).astype(np.float32)


COLORINGS, _TERMS = _colorings()


@dataclass(frozen=True)
class Planes:
    """Of a layout, by channel: planes [3, 5, pixels] and their products [3, 5, 5]."""

    planes: Values
    products: Values


def layout_of(scene: Scene) -> Layout:
    """Return the layout of a scene."""
    return tuple(getattr(scene.identity if name in Identity.vocabulary else scene.context, name) for name in LAYOUT)


def scene_of(layout: Layout, coloring: int) -> Scene:
    """Return the scene of a layout in one of `COLORINGS`."""
    value = dict(zip(LAYOUT, layout, strict=True))
    light, ground, color, second = (int(index) for index in COLORINGS[coloring])
    identity = Identity(value["shape"], color, second, value["pattern"], value["accessory"], value["face"])
    return Scene(
        identity,
        Context(
            place=value["place"],
            size=value["size"],
            rotation=value["rotation"],
            background_kind=value["background_kind"],
            background_color=ground,
            light_direction=value["light_direction"],
            light_color=light,
            style=value["style"],
        ),
    )


def pooled(image: Values) -> Values:
    """Return an image [64, 64, 3] averaged over 2 x 2 pixels, by channel: [3, 1024]."""
    blocks = image.reshape(_SIDE, _POOL, _SIDE, _POOL, 3).mean(axis=(1, 3))
    return np.ascontiguousarray(blocks.transpose(2, 0, 1).reshape(3, -1))


@lru_cache(maxsize=MEMORY)
def planes(layout: Layout) -> Planes:
    """Return the planes of a layout: what multiplies ground, body and pattern colour, and the light; and what is fixed."""
    scene = scene_of(layout, 0)
    identity, context = scene.identity, scene.context
    placement = renderer.placed(context)
    u, v, radius = placement.u, placement.v, placement.radius
    edge = 1.0 / radius
    body_field = shapes.BODIES[identity.word("shape")](u, v)
    accessory_distance, accessory_rgb = shapes.ACCESSORIES[identity.word("accessory")]
    accessory_field = accessory_distance(u, v)
    accessory = np.clip(0.5 - accessory_field * radius, 0, 1)
    mask = np.maximum(np.clip(0.5 - body_field * radius, 0, 1), accessory)

    # Rendered in black, the body shows what is fixed (face, accessory); in white with it taken away, its share.
    second = renderer._pattern(identity.word("pattern"), u, v, body_field, edge)

    def with_body(body: Values) -> Values:
        face = renderer._render_face(np.repeat(body[..., None], 3, axis=-1), identity.word("face"), u, v, edge)
        return face + (np.asarray(accessory_rgb, dtype=np.float32) - face) * accessory[..., None]

    fixed = with_body(np.zeros_like(second))
    shares = [(with_body(each) - fixed)[..., 0] for each in (1 - second, second)]

    brightness, highlight, outline = _relief(scene, body_field, accessory_field, mask, radius)
    direction = renderer.light_direction(context)
    ground = 1 - (1 - np.float32(renderer.DARKER)) * renderer.darkened(context.word("background_kind"))
    ground = ground * renderer.glow(direction) * renderer.shade(identity.word("shape"), placement, direction)
    seen = 1 - outline
    single = [ground * (1 - mask) * seen, *(mask * seen * brightness * share for share in shares)]
    columns = [np.repeat(each[..., None], 3, axis=-1) for each in single]
    columns.append((mask * seen)[..., None] * (brightness[..., None] * fixed + highlight[..., None]))
    columns.append(outline[..., None] * np.asarray(_OUTLINE_RGB, dtype=np.float32))
    stacked = np.stack([pooled(each.astype(np.float32)) for each in columns], axis=1)
    return Planes(stacked, np.einsum("cip,cjp->cij", stacked, stacked))


def _relief(
    scene: Scene, body: shapes.Field, accessory: shapes.Field, mask: Values, radius: float
) -> tuple[Values, Values, Values]:
    """Return brightness, highlight and outline [64, 64] of a body, as `renderer.render` computes them."""
    inward = np.clip(-np.minimum(body, accessory + np.float32(0.10)) / 0.6, 0, 1)
    height = np.sqrt(np.maximum(1 - (1 - inward) ** 2, 1e-4)) * np.float32(renderer.RELIEF * radius)
    slope_y, slope_x = np.gradient(height)
    normal = np.stack([-slope_x, slope_y, np.ones_like(height)], axis=-1) * mask[..., None]
    normal[..., 2] += 1 - mask
    normal /= np.linalg.norm(normal, axis=-1, keepdims=True)
    direction = renderer.light_direction(scene.context)
    facing = np.clip(normal @ direction, 0, 1)
    none = np.zeros_like(mask)
    style = scene.context.word("style")
    if style == "cartoon":
        outline = renderer.outline_of(np.minimum(body, accessory), radius)
        return np.where(facing > 0.45, np.float32(1.08), np.float32(0.72)), none, outline
    brightness = np.float32(0.50) + np.float32(0.62) * facing
    if style != "glossy":
        return brightness, none, none
    half_way = direction + np.asarray([0.0, 0.0, 1.0], dtype=np.float32)
    half_way /= np.linalg.norm(half_way)
    return brightness, np.float32(0.50) * np.clip(normal @ half_way, 0, 1) ** 24, none


def distances(wanted: Values, layout: Layout) -> Values:
    """Return the root mean squared difference on the [-1, 1] scale of a pooled image [3, p] from each colouring [n]."""
    layout_planes = planes(layout)
    squares = np.full(len(COLORINGS), float((wanted**2).sum()), dtype=np.float32)
    for channel in range(3):
        terms = _TERMS[channel]
        squares += ((terms @ layout_planes.products[channel]) * terms).sum(axis=-1)
        squares -= 2 * terms @ (layout_planes.planes[channel] @ wanted[channel])
    return 2 * np.sqrt(np.maximum(squares, 0) / wanted.size)
