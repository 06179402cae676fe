"""The memory that docs/use.md states for FLUX.1-dev is what the project's own counts give, and its lines to copy fit."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path

import pytest
from support.commands import CONF, compose_train

from dsd_lightning.flux.quantize import LIBRARIES, linear_layers, stored_bytes
from dsd_lightning.generation.arguments import parser
from dsd_lightning.models.build import build_architecture

GB = 1e9
T5_PARAMETERS = 4_762_310_656
"""Of T5-XXL's encoder, the largest part beside the transformer."""

BESIDE_WEIGHTS = 2.0
"""Activations and the library's own memory, GB, as docs/use.md states them."""

TEXT = (CONF.parent / "docs" / "use.md").read_text()


@cache
def parts() -> tuple[dict[str | None, float], float, float]:
    """Return the transformer's GB by kind of quantisation, those of all encoders, and those of T5 alone."""
    config = compose_train(
        Path("run"), "base=flux_dev", "arch=parallel", "arch.lora=null", "base.model.initialise=meta"
    )
    architecture = build_architecture(config)
    total = sum(parameter.numel() for parameter in architecture.parameters())
    for parameter in architecture.parameters():
        parameter.requires_grad_(False)
    shapes = [layer.weight.shape for unit in architecture.shard_units() for _, _, layer in linear_layers(unit)]
    rest = 2 * (total - sum(rows * columns for rows, columns in shapes))
    stored = {kind: (rest + sum(stored_bytes(kind, *shape) for shape in shapes)) / GB for kind in LIBRARIES}
    return {None: 2 * total / GB, **stored}, 2 * config.base.encoder_parameters / GB, 2 * T5_PARAMETERS / GB


def gpu(offload: bool, quantize: str | None) -> float:
    """Return the GB of weights on the GPU."""
    transformer, encoders, t5 = parts()
    return max(transformer[quantize], t5) if offload else transformer[quantize] + encoders


@pytest.mark.parametrize("offload", [False, True])
@pytest.mark.parametrize("quantize", [None, "fp8", "int8", "nf4"])
def test_the_table_is_what_the_counts_give(offload: bool, quantize: str | None) -> None:
    flags = [*(["--model_offload"] if offload else []), *([f"--quantize {quantize}"] if quantize else [])]
    named = " ".join(flags) or "nothing"
    named = named.replace("int8", "fp8")  # one row for both kinds of eight bits
    (stated,) = re.findall(rf"^\| `?{re.escape(named)}`?(?: or `int8`)? \| (\d+) \|", TEXT, re.MULTILINE)
    assert abs(gpu(offload, quantize) - int(stated)) < 0.6


@pytest.mark.parametrize("memory", [24, 48, 80])
def test_the_lines_to_copy_fit(memory: int) -> None:
    line = re.search(rf"^# {memory} GB:.*\npython generate\.py (.*)$", TEXT, re.MULTILINE)
    assert line is not None
    chosen = parser().parse_args(line[1].replace('"', "").split())
    assert chosen.model_path == "primecai/dsd_model"
    assert gpu(chosen.model_offload, chosen.quantize) + BESIDE_WEIGHTS < memory
