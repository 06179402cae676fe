"""Stands in for what the public code of metrics imports, asks or downloads, in the process that runs it."""

from __future__ import annotations

import hashlib
import json
import sys
import types
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from typing import Any, ClassVar

import numpy as np


def in_parts(messages: Any) -> list[dict[str, Any]]:
    """Return messages whose content is a list of parts; to the API a text alone is the same."""
    return [
        {**each, "content": [{"type": "text", "text": each["content"]}]} if isinstance(each["content"], str) else each
        for each in messages
    ]


def reply_to(messages: Any) -> str:
    """Return a language model's answer: a score that any change of the request changes."""
    digest = hashlib.sha256(json.dumps(in_parts(messages), sort_keys=True).encode()).digest()
    return f"Analysis: as it is.\nScore: {digest[0] % 5}"


class Absent:
    """Stands for anything of a module that is not installed; what is called or built fails, which their code catches."""

    def __init__(self, *_: object, **__: object) -> None:
        raise ImportError("not installed")


def stub(name: str, **attributes: Any) -> None:
    """Put an empty module where none is installed."""
    parts = name.split(".")
    if name not in sys.modules and (len(parts) > 1 or find_spec(name) is None):
        module = types.ModuleType(name)
        module.__spec__ = ModuleSpec(name, None, is_package=True)
        module.__path__ = []
        sys.modules[name] = module
        if len(parts) > 1:
            setattr(sys.modules[".".join(parts[:-1])], parts[-1], module)
    for key, value in attributes.items():
        setattr(sys.modules[name], key, value)


def package(name: str, folder: str) -> None:
    """Put a package without its `__init__`, which imports more than is needed."""
    module = types.ModuleType(name)
    module.__path__ = [folder]
    sys.modules[name] = module


def stub_torchvision_operators() -> None:
    """Declare operators that torchvision describes when it is imported, in case it was built for another torch."""
    import torch

    library = torch.library.Library("torchvision", "DEF")
    for name in ("nms", "qnms"):
        library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    stub.library = library  # type: ignore[attr-defined]  # declarations last as long as this object


def local_dino(checkout: str, weights: dict[str, str]) -> None:
    """Have `torch.hub.load("facebookresearch/dino:main", NAME)` build NAME from the checkout with prepared weights."""
    import torch

    load: Any = torch.hub.load

    def from_checkout(repository: str, name: str, **_: object) -> Any:
        assert repository.startswith("facebookresearch/dino")
        model = load(checkout, name, source="local", pretrained=False)
        model.load_state_dict(torch.load(weights[name], weights_only=True))
        return model

    hub: Any = torch.hub
    hub.load = from_checkout


class Recorder:
    """In the place of OpenAI's client: records requests and answers each by `reply_to`."""

    bodies: ClassVar[list[dict[str, Any]]] = []

    def __init__(self, **_: object) -> None:
        self.chat = self.completions = self

    def create(self, **body: Any) -> Any:
        """Return an answer in the client's form."""
        self.bodies.append(body)
        message = types.SimpleNamespace(content=reply_to(body["messages"]))
        return types.SimpleNamespace(choices=[types.SimpleNamespace(message=message)])


FACE_THRESHOLD = 0.15
"""Least score of a face: the last to which ViStoryBench lowers it."""


def face_in(pixels: np.ndarray) -> tuple[float, np.ndarray]:
    """Return a detector's score, 0 to 0.6, and a face's embedding [16] that any change of an image [h, w, 3] changes."""
    rng = np.random.default_rng(list(hashlib.sha256(np.ascontiguousarray(pixels).tobytes()).digest()))
    return float(rng.uniform(0, 0.6)), rng.normal(size=16).astype(np.float32)


class FaceAnalysis:
    """In the place of InsightFace's: finds at most one face, by `face_in`."""

    def __init__(self, **_: object) -> None:
        self.threshold = 1.0

    def prepare(self, ctx_id: int, det_thresh: float) -> None:
        """Take the least score of a face."""
        del ctx_id
        self.threshold = det_thresh

    def get(self, image: np.ndarray) -> list[Any]:
        """Return the faces of an image [h, w, 3] in blue, green, red."""
        score, embedding = face_in(image[..., ::-1])
        return [types.SimpleNamespace(embedding=embedding)] if score >= self.threshold else []
