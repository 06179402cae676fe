"""Compares faces with an ArcFace network (arXiv 1801.07698) that the user supplies as an ONNX file."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol, runtime_checkable

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor

from dsd_lightning.evaluation.errors import EvaluationError
from dsd_lightning.evaluation.similarity.face_alignment import SIDE, Landmarks, aligned
from dsd_lightning.evaluation.similarity.onnx_network import OnnxNetwork


@runtime_checkable
class FaceDetector(Protocol):
    """Finds the surest face of an image."""

    name: str
    """The file of the weights, and the settings that change what is found."""

    def surest(self, pixels: UInt8[np.ndarray, "h w 3"]) -> Landmarks | None:
        """Return x and y of the eyes, the nose and the corners of the mouth, pixels; None without a face."""
        ...


class ArcFace:
    """The embedding of the surest face in an image, aligned to ArcFace's template.

    Args:
        path: of the network, [n, 3, 112, 112] to [n, d]: w600k_r50.onnx of InsightFace's buffalo_l, glintr100.onnx of
            antelopev2 (ViStoryBench's). Both are for non-commercial research.
        detector: of faces.
        mean, deviation: of the pixels that the network takes, 0 to 255, channels red, green, blue. Networks that normalise
            inside (InsightFace's first, from MXNet) take 0 and 1.

    Raises:
        EvaluationError: the file cannot be used, or it is no network of this form.
    """

    name = "ArcFace"

    def __init__(self, path: str, detector: FaceDetector, mean: float = 127.5, deviation: float = 127.5) -> None:
        if not deviation > 0:
            raise EvaluationError(f"encoders.arcface.deviation={deviation}: a number above 0 (published: 127.5)")
        self.network, self.detector = OnnxNetwork(path, SIDE, "encoders.arcface.path"), detector
        self.mean, self.deviation = mean, deviation
        self.backbone = f"{self.network.name}, {detector.name}"
        self.width = self._embedding(np.zeros((SIDE, SIDE, 3), np.uint8)).shape[0]

    def images(self, images: Iterable[Image.Image]) -> Float[Tensor, "n d"]:
        """Return a unit vector an image, NaN for one without a face."""
        vectors = [self._of(np.asarray(each.convert("RGB"))) for each in images]
        return F.normalize(torch.stack(vectors), dim=-1)

    def _of(self, pixels: UInt8[np.ndarray, "h w 3"]) -> Float[Tensor, " d"]:
        landmarks = self.detector.surest(pixels)
        face = None if landmarks is None else aligned(pixels, landmarks)
        return torch.full((self.width,), torch.nan) if face is None else self._embedding(face)

    def _embedding(self, face: UInt8[np.ndarray, "112 112 3"]) -> Float[Tensor, " d"]:
        values = (face.astype(np.float32) - np.float32(self.mean)) / np.float32(self.deviation)
        outputs = self.network(values.transpose(2, 0, 1)[None])
        if len(outputs) != 1 or outputs[0].ndim != 2 or len(outputs[0]) != 1:
            shapes = [list(each.shape) for each in outputs]
            raise EvaluationError(
                f"encoders.arcface.path: {self.network.name} gives {shapes}, and one vector [1, d] is needed"
            )
        return torch.from_numpy(outputs[0][0].astype(np.float32))
