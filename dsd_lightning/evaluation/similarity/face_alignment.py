"""Cuts faces out as ArcFace was trained on them: five landmarks are moved onto its template by a similarity transform."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float, UInt8
from scipy.ndimage import map_coordinates

SIDE = 112
"""Of an aligned face, pixels."""

TEMPLATE = np.array(
    [(38.2946, 51.6963), (73.5318, 51.5014), (56.0252, 71.7366), (41.5493, 92.3655), (70.7299, 92.2041)]
)
"""Where the eyes, the nose and the corners of the mouth are in an aligned face: x and y, pixels, in the order of the image from
left to right. `arcface_dst` of InsightFace's `face_align.py`."""

_LEAST_SPREAD = 1e-3
"""Of landmarks about their mean, pixels, below which they are no face."""

Landmarks = Float[np.ndarray, "5 2"]


def to_template(landmarks: Landmarks) -> Float[np.ndarray, "2 3"] | None:
    """Return the rotation, scale and shift that bring landmarks nearest to the template; None if all are one point.

    Least squares without reflection (Umeyama 1991, with reflections excluded), as InsightFace has it from scikit-image: for
    points of the plane as complex numbers, a linear regression.
    """
    points, wanted = (each[:, 0] + 1j * each[:, 1] for each in (landmarks, TEMPLATE))
    centred = points - points.mean()
    if np.abs(centred).max() < _LEAST_SPREAD:
        return None
    turn = (centred.conj() * (wanted - wanted.mean())).sum() / (np.abs(centred) ** 2).sum()
    shift = wanted.mean() - turn * points.mean()
    return np.array([(turn.real, -turn.imag, shift.real), (turn.imag, turn.real, shift.imag)])


def aligned(pixels: UInt8[np.ndarray, "h w 3"], landmarks: Landmarks) -> UInt8[np.ndarray, "112 112 3"] | None:
    """Return the face with its landmarks on the template, black beyond the image; None if the landmarks are one point.

    Bilinear without antialiasing, like OpenCV's `warpAffine`, which InsightFace uses.
    """
    matrix = to_template(landmarks)
    if matrix is None:
        return None
    back = np.linalg.inv(np.vstack([matrix, (0, 0, 1)]))[:2]
    x, y = np.meshgrid(np.arange(SIDE), np.arange(SIDE))
    return _sampled(pixels, np.tensordot(back, np.stack([x, y, np.ones_like(x)]), 1), "grid-constant")


def resized(pixels: UInt8[np.ndarray, "h w 3"], width: int, height: int) -> UInt8[np.ndarray, "height2 width2 3"]:
    """Return the image in another size, bilinear without antialiasing, like OpenCV's `resize`."""
    x, y = (
        (np.arange(new) + 0.5) * old / new - 0.5 for new, old in ((width, pixels.shape[1]), (height, pixels.shape[0]))
    )
    return _sampled(pixels, np.stack(np.meshgrid(x, y)), "nearest")


def _sampled(
    pixels: UInt8[np.ndarray, "h w 3"], places: Float[np.ndarray, "2 height width"], beyond: str
) -> UInt8[np.ndarray, "height width 3"]:
    """Return the image at x and y, pixels; `beyond` is scipy's mode."""
    channels = [
        map_coordinates(channel, places[::-1], order=1, mode=beyond, output=np.float32)
        for channel in np.moveaxis(pixels.astype(np.float32), -1, 0)
    ]
    return np.rint(np.stack(channels, axis=-1)).astype(np.uint8)
