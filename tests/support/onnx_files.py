"""Writes small ONNX files without the package onnx, whose newest releases want another protobuf than this project's.

The messages are those of https://github.com/onnx/onnx/blob/main/onnx/onnx.proto, in protobuf's wire format.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

Value = int | str | bytes

_FLOAT, _INT64 = 1, 7
"""Types of a tensor."""


def _varint(value: int) -> bytes:
    groups = [value & 0x7F]
    while value := value >> 7:
        groups[-1] |= 0x80
        groups.append(value & 0x7F)
    return bytes(groups)


def _message(*fields: tuple[int, Value]) -> bytes:
    """Return a message of fields with their numbers: integers as varints, all else with its length."""
    parts = []
    for number, value in fields:
        if isinstance(value, int):
            parts.append(_varint(number << 3) + _varint(value))
        else:
            content = value.encode() if isinstance(value, str) else value
            parts.append(_varint(number << 3 | 2) + _varint(len(content)) + content)
    return b"".join(parts)


def _tensor(name: str, value: np.ndarray) -> bytes:
    kind = _INT64 if value.dtype == np.int64 else _FLOAT
    raw = value.astype(np.int64 if kind == _INT64 else np.float32).tobytes()
    return _message(*((1, size) for size in value.shape), (2, kind), (8, name), (9, raw))


def _value(name: str, shape: Sequence[int | str]) -> bytes:
    sizes = _message(*((1, _message((1 if isinstance(size, int) else 2, size))) for size in shape))
    return _message((1, name), (2, _message((1, _message((1, _FLOAT), (2, sizes))))))


@dataclass
class OnnxFile:
    """A graph that is written node by node.

    Args:
        inputs, outputs: shapes by name; a word is a dimension of any size.
    """

    inputs: Mapping[str, Sequence[int | str]]
    outputs: Mapping[str, Sequence[int | str]]
    nodes: list[bytes] = field(default_factory=list)
    tensors: list[bytes] = field(default_factory=list)

    def add(
        self, operator: str, inputs: Sequence[str | np.ndarray], output: str, **attributes: Sequence[int] | int
    ) -> str:
        """Add a node, whose arrays become constants; return its output's name."""
        names = []
        for place, each in enumerate(inputs):
            if isinstance(each, np.ndarray):
                self.tensors.append(_tensor(f"{output}.{place}", each))
                each = f"{output}.{place}"
            names.append(each)
        described = [
            (5, _message((1, key), (3, value), (20, 2)))
            if isinstance(value, int)
            else (5, _message((1, key), *((8, size) for size in value), (20, 7)))
            for key, value in attributes.items()
        ]
        self.nodes.append(_message(*((1, name) for name in names), (2, output), (4, operator), *described))
        return output

    def write(self, file: Path) -> Path:
        """Write the file; return it."""
        graph = _message(
            *((1, node) for node in self.nodes),
            (2, "graph"),
            *((5, tensor) for tensor in self.tensors),
            *((11, _value(name, shape)) for name, shape in self.inputs.items()),
            *((12, _value(name, shape)) for name, shape in self.outputs.items()),
        )
        file.write_bytes(_message((1, 8), (8, _message((1, ""), (2, 13))), (7, graph)))
        return file
