"""Runs a network that is stored as an ONNX file, through onnxruntime (the extra `faces`)."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float32

from dsd_lightning.evaluation.errors import EvaluationError

_ERRORS_ALONE = 3
"""Of onnxruntime's levels of log messages."""


class OnnxNetwork:
    """A network with one input, an image [1, 3, side, side] in float32.

    Args:
        path: of the file.
        side: of the image, pixels.
        setting: names the network in messages, such as `encoders.arcface.path`.

    Attributes:
        name: the file's name and the start of its sha256.

    Raises:
        EvaluationError: onnxruntime is not installed, there is no such file, it is no ONNX, or it takes another input.
    """

    def __init__(self, path: str, side: int, setting: str) -> None:
        file = Path(path)
        if not file.is_file():
            raise EvaluationError(
                f"{setting}={path}: there is no such file; docs/evaluate.md says where the files of faces are"
            )
        try:
            import onnxruntime
        except ImportError as error:
            raise EvaluationError(
                f"{setting}: faces need onnxruntime: pip install -c constraints.txt -e '.[faces]'"
            ) from error
        with file.open("rb") as stream:
            self.name = f"{file.name} {hashlib.file_digest(stream, 'sha256').hexdigest()[:8]}"
        self._label, options = f"{setting}={path}", onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.log_severity_level = torch.get_num_threads(), _ERRORS_ALONE
        usable = [
            name
            for name in ("CUDAExecutionProvider", "CPUExecutionProvider")
            if name in onnxruntime.get_available_providers()
        ]
        try:
            self._session: Any = onnxruntime.InferenceSession(file, options, providers=usable)
        except Exception as error:  # of a kind for each thing that can be wrong, without a common one
            raise EvaluationError(f"{self._label}: it cannot be read as ONNX ({_first_line(error)})") from error
        inputs = [(each.name, list(each.shape)) for each in self._session.get_inputs()]
        shape = inputs[0][1] if len(inputs) == 1 else []
        wanted = (1, 3, side, side)
        fits = len(shape) == 4 and all(
            not isinstance(size, int) or size == want for size, want in zip(shape, wanted, strict=True)
        )
        if not fits:
            raise EvaluationError(f"{self._label}: it takes {inputs}, and one image [1, 3, {side}, {side}] is needed")
        self._input = inputs[0][0]

    def __call__(self, pixels: Float32[np.ndarray, "1 3 s s"]) -> list[np.ndarray]:
        """Return the outputs in the file's order.

        Raises:
            EvaluationError: the network fails on an image.
        """
        try:
            outputs: list[np.ndarray] = self._session.run(None, {self._input: pixels})
        except Exception as error:  # as above
            raise EvaluationError(f"{self._label}: it fails on an image ({_first_line(error)})") from error
        return outputs


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0]
