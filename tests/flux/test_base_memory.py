"""A base in the dtype of its file is mapped into memory: the processes of a machine share one copy until theirs is on a GPU."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from torch import nn

from dsd_lightning.flux.base import FluxBase


def mapped(file: Path) -> list[range]:
    """Return the addresses at which this process has a file mapped."""
    lines = [line.split(maxsplit=5) for line in Path("/proc/self/maps").read_text().splitlines()]
    spans = [fields[0].split("-") for fields in lines if len(fields) == 6 and Path(fields[5].strip()) == file.resolve()]
    return [range(int(start, 16), int(end, 16)) for start, end in spans]


def share_in(file: Path, model: nn.Module) -> float:
    """Return the share of a model's values that are in the mapped file."""
    spans = mapped(file)
    inside = sum(
        value.numel() for value in model.parameters() if any(value.data_ptr() in addresses for addresses in spans)
    )
    return inside / sum(value.numel() for value in model.parameters())


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_the_transformer_is_mapped_and_not_copied(tiny_base: Path) -> None:
    model = FluxBase(str(tiny_base), "float32").transformer()
    assert share_in(tiny_base / "transformer" / "diffusion_pytorch_model.safetensors", model) == 1
