"""Signed distances of the miniature world's bodies and accessories (negative inside, unit: body radius).

Coordinates are the character's own: `u` to its right, `v` upwards, the body within about [-1, 1] x [-1, 1].
Formulas after Inigo Quilez, "2D distance functions" (iquilezles.org/articles/distfunctions2d).
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

Field = NDArray[np.float32]


def circle(u: Field, v: Field, radius: float = 1.0) -> Field:
    """Distance to a disc around the origin."""
    return np.sqrt(u * u + v * v) - np.float32(radius)


def box(u: Field, v: Field, half_width: float, half_height: float) -> Field:
    """Distance to an axis-aligned box around the origin."""
    du, dv = np.abs(u) - np.float32(half_width), np.abs(v) - np.float32(half_height)
    outside = np.sqrt(np.maximum(du, 0) ** 2 + np.maximum(dv, 0) ** 2)
    return outside + np.minimum(np.maximum(du, dv), 0)


def polygon(u: Field, v: Field, corners: list[tuple[float, float]]) -> Field:
    """Distance to a simple polygon given by its corners in order."""
    count = len(corners)
    first = corners[0]
    distance = (u - np.float32(first[0])) ** 2 + (v - np.float32(first[1])) ** 2
    inside = np.zeros(u.shape, dtype=bool)
    for i in range(count):
        (ax, ay), (bx, by) = corners[i], corners[i - 1]
        ex, ey = np.float32(bx - ax), np.float32(by - ay)
        wx, wy = u - np.float32(ax), v - np.float32(ay)
        along = np.clip((wx * ex + wy * ey) / (ex * ex + ey * ey), 0, 1)
        distance = np.minimum(distance, (wx - ex * along) ** 2 + (wy - ey * along) ** 2)
        crosses = ((v >= ay) & (v < by)) | ((v >= by) & (v < ay))
        if by != ay:
            inside ^= crosses & (u < (bx - ax) * (v - ay) / (by - ay) + ax)
    return np.where(inside, -np.sqrt(distance), np.sqrt(distance)).astype(np.float32)


def _square(u: Field, v: Field) -> Field:
    return box(u, v, 0.70, 0.70) - np.float32(0.12)


def _triangle(u: Field, v: Field) -> Field:
    return polygon(u, v, [(-0.92, -0.70), (0.92, -0.70), (0.0, 0.86)]) - np.float32(0.12)


_STAR = [
    (radius * float(np.sin(k * np.pi / 5)), radius * float(np.cos(k * np.pi / 5)))
    for k in range(10)
    for radius in ([1.12] if k % 2 == 0 else [0.58])
]


def _star(u: Field, v: Field) -> Field:
    return polygon(u, v, _STAR) - np.float32(0.04)


def _heart(u: Field, v: Field) -> Field:
    a, b = np.abs(u) / np.float32(1.60), (v + np.float32(0.95)) / np.float32(1.60)
    upper = np.sqrt((a - 0.25) ** 2 + (b - 0.75) ** 2) - np.float32(np.sqrt(2) / 4)
    diagonal = 0.5 * np.maximum(a + b, 0)
    lower = np.sqrt(np.minimum(a**2 + (b - 1) ** 2, (a - diagonal) ** 2 + (b - diagonal) ** 2)) * np.sign(a - b)
    return (np.where(a + b > 1, upper, lower) * np.float32(1.60)).astype(np.float32)


def _cross(u: Field, v: Field) -> Field:
    return np.minimum(box(u, v, 0.95, 0.42), box(u, v, 0.42, 0.95)) - np.float32(0.06)


BODIES: dict[str, Callable[[Field, Field], Field]] = {
    "circle": lambda u, v: circle(u, v, 0.92),
    "square": _square,
    "triangle": _triangle,
    "star": _star,
    "heart": _heart,
    "cross": _cross,
}
"""Signed distance of each body shape."""


def _hat(u: Field, v: Field) -> Field:
    return np.minimum(box(u, v - np.float32(0.72), 0.66, 0.10), box(u, v - np.float32(1.05), 0.38, 0.34))


def _crown(u: Field, v: Field) -> Field:
    corners = [(-0.6, 0.62), (0.6, 0.62), (0.68, 1.34), (0.3, 0.98), (0.0, 1.42), (-0.3, 0.98), (-0.68, 1.34)]
    return polygon(u, v, corners)


def _horns(u: Field, v: Field) -> Field:
    return polygon(np.abs(u), v, [(0.22, 0.62), (0.72, 0.45), (0.86, 1.36)]) - np.float32(0.04)


def _bow(u: Field, v: Field) -> Field:
    wings = polygon(np.abs(u), v - np.float32(0.86), [(0.0, 0.0), (0.72, 0.40), (0.72, -0.40)]) - np.float32(0.03)
    return np.minimum(wings, circle(u, v - np.float32(0.86), 0.18))


ACCESSORIES: dict[str, tuple[Callable[[Field, Field], Field], tuple[float, float, float]]] = {
    "hat": (_hat, (0.13, 0.13, 0.20)),
    "crown": (_crown, (0.93, 0.74, 0.12)),
    "horns": (_horns, (0.42, 0.16, 0.08)),
    "bow": (_bow, (0.10, 0.68, 0.72)),
}
"""Signed distance and sRGB colour of each accessory."""
