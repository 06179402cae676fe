"""Finds the surest face of an image and its landmarks with SCRFD (arXiv 2105.04714), read from an ONNX file."""

from __future__ import annotations

import numpy as np
from jaxtyping import UInt8

from dsd_lightning.evaluation.errors import EvaluationError
from dsd_lightning.evaluation.similarity.face_alignment import Landmarks, resized
from dsd_lightning.evaluation.similarity.onnx_network import OnnxNetwork

_MEAN, _DEVIATION = 127.5, 128.0
"""Of the pixels that the network takes, all channels alike."""

_PYRAMIDS = {9: ((8, 16, 32), 2), 15: ((8, 16, 32, 64, 128), 1)}
"""Strides and anchors a place, by the number of outputs: scores, boxes and landmarks of each stride."""

_SETTING = "encoders.arcface.detector"


class Scrfd:
    """InsightFace's detector, reduced to what the comparison of faces needs: the surest face.

    ViStoryBench takes the first face that InsightFace finds, the surest, and lowers the threshold from 0.45 to 0.15 until there
    is one. One pass at 0.15 finds the same, and suppressing overlaps never removes the surest.

    Args:
        path: of the file, one with landmarks: det_10g.onnx of buffalo_l, scrfd_10g_bnkps.onnx of antelopev2.
        threshold: least score of a face, 0 to 1.
        side: of the square that an image is fitted into, pixels; InsightFace 0.7.3, which ViStoryBench pins, takes 640.

    Raises:
        EvaluationError: the file cannot be used, or a number is off its scale.
    """

    def __init__(self, path: str, threshold: float = 0.15, side: int = 640) -> None:
        if not (0 < threshold < 1 and side > 0 and side % 32 == 0):
            raise EvaluationError(
                f"{_SETTING}: threshold={threshold} is a score between 0 and 1, side={side} a multiple of 32 pixels"
            )
        self.network = OnnxNetwork(path, side, f"{_SETTING}.path")
        self.threshold, self.side = threshold, side
        self.name = f"{self.network.name}, {threshold:g}, {side} px"
        self.surest(np.zeros((side, side, 3), np.uint8))  # refuses other networks at once

    def surest(self, pixels: UInt8[np.ndarray, "h w 3"]) -> Landmarks | None:
        """Return the landmarks of the surest face in the image, x and y in pixels; None without a face.

        Raises:
            EvaluationError: the network's outputs are not those of SCRFD with landmarks.
        """
        high, wide = pixels.shape[:2]
        ratio = high / wide
        width, height = (
            (max(1, int(self.side / ratio)), self.side) if ratio > 1 else (self.side, max(1, int(self.side * ratio)))
        )
        canvas = np.zeros((self.side, self.side, 3), np.float32)
        canvas[:height, :width] = resized(pixels, width, height)
        outputs = self.network(((canvas - _MEAN) / _DEVIATION).transpose(2, 0, 1)[None])
        best, landmarks = max(self._levels(outputs), key=lambda level: level[0])
        return landmarks * (high / height) if best >= self.threshold else None

    def _levels(self, outputs: list[np.ndarray]) -> list[tuple[float, Landmarks]]:
        """Return score and landmarks of each stride's surest face, pixels of the square."""
        if len(outputs) not in _PYRAMIDS:
            raise EvaluationError(
                f"{_SETTING}.path: {self.network.name} has {len(outputs)} outputs; an SCRFD with landmarks (kps) has 9 or 15"
            )
        strides, anchors = _PYRAMIDS[len(outputs)]
        levels = []
        for level, stride in enumerate(strides):
            across = self.side // stride
            # With and without a dimension of the batch.
            scores, offsets = (
                outputs[level + kind * len(strides)].reshape(-1, size) for kind, size in ((0, 1), (2, 10))
            )
            if len(scores) != across * across * anchors or len(offsets) != len(scores):
                raise EvaluationError(
                    f"{_SETTING}.path: {self.network.name} has {len(scores)} scores at stride {stride}, and an SCRFD has "
                    f"{across * across * anchors} for side={self.side}"
                )
            place = int(scores.argmax())
            y, x = divmod(place // anchors, across)
            landmarks = (offsets[place].reshape(5, 2).astype(np.float64) + np.array((x, y))) * stride
            levels.append((float(scores[place, 0]), landmarks))
        return levels
