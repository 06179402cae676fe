"""From a scene to its image, foreground mask and depth: deterministic, anti-aliased, in closed form.

Every edge is a signed distance clipped over one pixel, so an image is a smooth function of the geometry and the same on
every machine up to float rounding. The body is a bevelled relief; its normals give diffuse light, a highlight and a soft
shadow on the background, so that the same scene under another light differs as a photograph would.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dsd_lightning.miniature import shapes
from dsd_lightning.miniature.world import BACKGROUND_PALETTE, PALETTE, Context, Scene

RESOLUTION = 64
"""Side of an image, pixels."""

BODY_RADIUS = {"large": 23.5, "small": 18.5}
"""Body radius, pixels at 64 x 64."""

CENTER = {
    "large": {
        "center": (32.0, 37.0),
        "left": (26.5, 37.0),
        "right": (37.5, 37.0),
        "top": (32.0, 34.0),
        "bottom": (32.0, 40.0),
    },
    "small": {
        "center": (32.0, 37.0),
        "left": (23.0, 37.0),
        "right": (41.0, 37.0),
        "top": (32.0, 29.0),
        "bottom": (32.0, 44.0),
    },
}
"""Body centre (x, y) by size, pixels from the upper left corner at 64 x 64.

What is upright lies within the image; the tips of what is tilted may leave it by 2 pixels.
"""

TILT_DEGREES = {"upright": 0.0, "left": 26.0, "right": -26.0}
"""Counter-clockwise rotation, degrees."""

LIGHT = {
    "front": (0.0, 0.25, 1.0),
    "left": (-0.92, 0.15, 0.42),
    "right": (0.92, 0.15, 0.42),
    "above": (0.0, 0.95, 0.40),
    "below": (0.0, -0.95, 0.40),
}
"""Direction towards the light: x to the right, y upwards, z towards the viewer (normalised before use)."""

LIGHT_RGB = {"white": (1.0, 1.0, 1.0), "warm": (1.08, 0.91, 0.72), "cool": (0.80, 0.92, 1.12)}
"""Colour of the light, multiplies reflected sRGB values."""

RELIEF = 0.55
"""Height of the body over the background, body radii."""

FAR, NEAR_GROUND, BODY_FRONT = 1.0, 0.75, 0.45
"""Depths: background at the top of the image, background at its bottom, body's base plane (smaller is nearer)."""


@dataclass(frozen=True)
class Rendering:
    """A scene's image [64, 64, 3] in [0, 1], mask [64, 64] in [0, 1] and depth [64, 64] in (0, 1] (far is 1)."""

    image: NDArray[np.float32]
    mask: NDArray[np.float32]
    depth: NDArray[np.float32]

    @property
    def depth_map(self) -> NDArray[np.float32]:
        """The depth as an image [64, 64, 3] in [0, 1): `1 - depth`, near is bright, three equal channels.

        The one definition of how depth is shown: what `task=depth` conditions on and what the VAE is trained on.
        """
        return np.repeat(1 - self.depth[..., None], 3, axis=-1)


def _rgb(color: tuple[float, float, float]) -> NDArray[np.float32]:
    return np.asarray(color, dtype=np.float32)


def _mix(below: NDArray[np.float32], above: NDArray[np.float32], amount: NDArray[np.float32]) -> NDArray[np.float32]:
    return below + (above - below) * amount[..., None]


_ROWS, _COLUMNS = np.meshgrid(
    np.arange(RESOLUTION, dtype=np.float32) + np.float32(0.5),
    np.arange(RESOLUTION, dtype=np.float32) + np.float32(0.5),
    indexing="ij",
)


DARKER = 0.72
"""Brightness of the darker stripes and squares of a background, relative to the lighter ones."""


def darkened(kind: str) -> NDArray[np.float32]:
    """Return the share [64, 64] of each pixel that a kind of background darkens."""
    if kind == "plain":
        return np.zeros((RESOLUTION, RESOLUTION), dtype=np.float32)
    period = 16.0
    wave_x = np.abs(np.mod(_COLUMNS, period) - period / 2) - period / 4
    across = np.clip(0.5 - wave_x, 0, 1)
    if kind == "striped":
        return across.astype(np.float32)
    wave_y = np.abs(np.mod(_ROWS, period) - period / 2) - period / 4
    down = np.clip(0.5 - wave_y, 0, 1)
    return (across + down - 2 * across * down).astype(np.float32)


def _background(context: Context) -> NDArray[np.float32]:
    base = _rgb(BACKGROUND_PALETTE[context.word("background_color")])
    image = np.broadcast_to(base, (RESOLUTION, RESOLUTION, 3))
    return _mix(image, base * np.float32(DARKER), darkened(context.word("background_kind")))


def _pattern(kind: str, u: shapes.Field, v: shapes.Field, body: shapes.Field, edge: float) -> NDArray[np.float32]:
    """Share of the second colour at each pixel; `edge` is a pixel's width in body radii."""
    if kind == "stripes":
        field = np.abs(np.mod(v + np.float32(0.25), 0.62) - 0.31) - 0.145
    elif kind == "dots":
        field = np.float32(10.0) * np.ones_like(u)
        for x, y in (
            (-0.62, -0.30),
            (0.0, -0.52),
            (0.62, -0.30),
            (-0.45, 0.50),
            (0.45, 0.50),
            (0.0, -0.96),
            (0.0, 0.84),
        ):
            field = np.minimum(field, shapes.circle(u - np.float32(x), v - np.float32(y), 0.21))
    elif kind == "half":
        field = -u
    else:
        field = -(body + np.float32(0.27))
    return np.clip(0.5 - field / edge, 0, 1).astype(np.float32)


def _render_face(
    image: NDArray[np.float32], face: str, u: shapes.Field, v: shapes.Field, edge: float
) -> NDArray[np.float32]:
    white, dark = _rgb((0.98, 0.98, 0.98)), _rgb((0.06, 0.06, 0.10))

    def blend(onto: NDArray[np.float32], field: shapes.Field, color: NDArray[np.float32]) -> NDArray[np.float32]:
        return _mix(onto, color, np.clip(0.5 - field / edge, 0, 1).astype(np.float32))

    if face == "cyclops":
        image = blend(image, shapes.circle(u, v - np.float32(0.02), 0.42), dark)
        image = blend(image, shapes.circle(u, v - np.float32(0.02), 0.34), white)
        return blend(image, shapes.circle(u, v - np.float32(0.02), 0.17), dark)
    if face == "glasses":
        lenses = shapes.box(np.abs(u) - np.float32(0.33), v - np.float32(0.08), 0.22, 0.17) - np.float32(0.05)
        bridge = shapes.box(u, v - np.float32(0.14), 0.62, 0.06)
        return blend(image, np.minimum(lenses, bridge), dark)
    eye = np.abs(u) - np.float32(0.30)
    image = blend(image, shapes.circle(eye, v - np.float32(0.08), 0.27), dark)
    image = blend(image, shapes.circle(eye, v - np.float32(0.08), 0.20), white)
    return blend(image, shapes.circle(eye, v - np.float32(0.04), 0.10), dark)


@dataclass(frozen=True)
class Placement:
    """Where a context puts a character: its own coordinates at each pixel [64, 64], body radius (pixels), tilt (radians)."""

    u: shapes.Field
    v: shapes.Field
    radius: float
    angle: float


def placed(context: Context) -> Placement:
    """Return the placement that a context's size, place and rotation give."""
    radius = BODY_RADIUS[context.word("size")]
    center_x, center_y = CENTER[context.word("size")][context.word("place")]
    angle = np.deg2rad(TILT_DEGREES[context.word("rotation")])
    cosine, sine = np.float32(np.cos(angle) / radius), np.float32(np.sin(angle) / radius)
    right, up = _COLUMNS - np.float32(center_x), np.float32(center_y) - _ROWS
    return Placement(right * cosine + up * sine, up * cosine - right * sine, radius, angle)


def light_direction(context: Context) -> NDArray[np.float32]:
    """Return the unit vector [3] towards the light."""
    direction = np.asarray(LIGHT[context.word("light_direction")], dtype=np.float32)
    return direction / np.linalg.norm(direction)


def glow(direction: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the factor [64, 64] by which the background is brighter towards a side light."""
    across, upwards = (_COLUMNS - 32) / 32, (32 - _ROWS) / 32
    return np.float32(0.92) + np.float32(0.22) * (across * direction[0] + upwards * direction[1])


def shade(shape: str, placement: Placement, direction: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the factor [64, 64] by which the background is darker where the body throws its shadow."""
    shift_u, shift_v = direction[0] * np.float32(0.55), direction[1] * np.float32(0.55)
    angle = placement.angle
    tilt_u = shift_u * np.cos(angle) + shift_v * np.sin(angle)
    tilt_v = shift_v * np.cos(angle) - shift_u * np.sin(angle)
    shadow_field = shapes.BODIES[shape](placement.u + np.float32(tilt_u), placement.v + np.float32(tilt_v))
    shadow = np.clip(0.5 - shadow_field / 0.35, 0, 1).astype(np.float32)
    return 1 - np.float32(0.38) * shadow


def outline_of(field: shapes.Field, radius: float) -> NDArray[np.float32]:
    """Return the cover [64, 64] of a cartoon's outline along the edge of a signed distance `field`, body radii."""
    return np.clip(1.6 - np.abs(field * radius + 0.4), 0, 1).astype(np.float32)


def render(scene: Scene) -> Rendering:
    """Draw one scene at 64 x 64."""
    identity, context = scene.identity, scene.context
    placement = placed(context)
    u, v, radius = placement.u, placement.v, placement.radius
    edge = 1.0 / radius

    body_field = shapes.BODIES[identity.word("shape")](u, v)
    accessory_distance, accessory_rgb = shapes.ACCESSORIES[identity.word("accessory")]
    accessory_field = accessory_distance(u, v)
    body = np.clip(0.5 - body_field * radius, 0, 1).astype(np.float32)
    accessory = np.clip(0.5 - accessory_field * radius, 0, 1).astype(np.float32)
    mask = np.maximum(body, accessory)

    albedo = np.broadcast_to(_rgb(PALETTE[identity.word("color")]), (RESOLUTION, RESOLUTION, 3))
    second = _rgb(PALETTE[identity.word("second_color")])
    albedo = _mix(albedo, second, _pattern(identity.word("pattern"), u, v, body_field, edge))
    albedo = _render_face(albedo, identity.word("face"), u, v, edge)
    albedo = _mix(albedo, _rgb(accessory_rgb), accessory)

    # A quarter-round bevel: the relief rises over the outer 0.6 radii of the body, then stays flat.
    inward = np.clip(-np.minimum(body_field, accessory_field + np.float32(0.10)) / 0.6, 0, 1)
    height = np.sqrt(np.maximum(1 - (1 - inward) ** 2, 1e-4)) * np.float32(RELIEF * radius)
    slope_y, slope_x = np.gradient(height)
    normal = np.stack([-slope_x, slope_y, np.ones_like(height)], axis=-1) * mask[..., None]
    normal[..., 2] += 1 - mask
    normal /= np.linalg.norm(normal, axis=-1, keepdims=True)

    direction = light_direction(context)
    facing = np.clip(normal @ direction, 0, 1).astype(np.float32)
    style = context.word("style")
    outline = np.zeros_like(mask)
    if style == "cartoon":
        brightness = np.where(facing > 0.45, np.float32(1.08), np.float32(0.72))
        outline = outline_of(np.minimum(body_field, accessory_field), radius)
    else:
        brightness = np.float32(0.50) + np.float32(0.62) * facing
    lit = albedo * brightness[..., None]
    if style == "glossy":
        half_way = direction + np.asarray([0.0, 0.0, 1.0], dtype=np.float32)
        half_way /= np.linalg.norm(half_way)
        lit = lit + np.float32(0.50) * (np.clip(normal @ half_way, 0, 1) ** 24)[..., None]

    ground = _background(context) * glow(direction)[..., None]
    ground = ground * shade(identity.word("shape"), placement, direction)[..., None]
    image = _mix(ground, lit, mask)
    image = image * _rgb(LIGHT_RGB[context.word("light_color")])
    image = _mix(image, _rgb((0.05, 0.05, 0.08)), outline)

    plane = np.float32(FAR) + np.float32(NEAR_GROUND - FAR) * (_ROWS / RESOLUTION)
    relief = np.float32(BODY_FRONT) - np.float32(0.30) * height / np.float32(BODY_RADIUS["large"] * RELIEF)
    depth = plane + (relief - plane) * mask
    return Rendering(np.clip(image, 0, 1).astype(np.float32), mask, depth.astype(np.float32))
