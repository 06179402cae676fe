"""Writes small networks of faces in the forms of InsightFace's ONNX files: ArcFace's embedding, and SCRFD's finds."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from dsd_lightning.evaluation.similarity.face_alignment import TEMPLATE
from support.onnx_files import OnnxFile

SIDE = 160
"""Of the small detector's square, pixels."""

WIDTH = 8
"""Of the small embedding."""

_STEEP = 12.0
"""Of the score of a place by its redness."""


def write_arcface(file: Path, side: int = 112, width: int = WIDTH) -> Path:
    """Write a random network from an aligned face to an embedding."""
    rng = np.random.default_rng(0)
    network = OnnxFile({"input": ("n", 3, side, side)}, {"embedding": ("n", width)})
    features = network.add("Conv", ["input", rng.normal(size=(4, 3, 7, 7)), rng.normal(size=4)], "a", strides=(7, 7))
    flat = network.add("Flatten", [network.add("Tanh", [features], "b")], "c")
    network.add("MatMul", [flat, rng.normal(size=(4 * (side // 7) ** 2, width))], "embedding")
    return network.write(file)


def write_scrfd(
    file: Path, side: int | str = SIDE, strides: tuple[int, ...] = (8, 16, 32), landmarks: bool = True
) -> Path:
    """Write a detector that sees a face where an image is red and nothing else.

    A cell of its grid whose red is r and whose other colours are o, 0 to 1, has the score sigmoid(12 (r - o) - 6), at the
    smallest stride a little more. Its landmarks are ArcFace's template from the cell's corner on: a face of 112 pixels.
    """
    outputs = {
        f"{kind}{stride}": ("n", size)
        for kind, size in (("score", 1), ("box", 4), ("points", 10))
        if landmarks or kind != "points"
        for stride in strides
    }
    network = OnnxFile({"image": (1, 3, side, side)}, outputs)
    for stride in strides:
        redness = np.zeros((2, 3, stride, stride))
        # Pixels are -1 to 1; the mean over the cell.
        redness[0] = np.array([_STEEP / 2, -_STEEP / 4, -_STEEP / 4])[:, None, None] / stride**2
        heads = {
            "score": (redness, np.array([-_STEEP / 2 - stride / 100, -_STEEP])),
            "box": (np.zeros((8, 3, stride, stride)), np.ones(8)),
            "points": (np.zeros((20, 3, stride, stride)), np.tile(TEMPLATE.ravel() / stride, 2)),
        }
        for kind, (weight, bias) in heads.items():
            name = f"{kind}{stride}"
            if name not in outputs:
                continue
            grid = network.add("Conv", ["image", weight, bias], f"{name}.grid", strides=(stride, stride))
            last = network.add("Transpose", [grid], f"{name}.last", perm=(0, 2, 3, 1))
            shape = np.array([-1, outputs[name][1]], np.int64)
            if kind == "score":
                network.add("Sigmoid", [network.add("Reshape", [last, shape], f"{name}.flat")], name)
            else:
                network.add("Reshape", [last, shape], name)
    return network.write(file)
