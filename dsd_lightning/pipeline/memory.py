"""How does a pipeline fit into a device's memory? Quantised weights, offload, and what is told when neither can be had."""

from __future__ import annotations

import importlib
import logging
from collections.abc import Iterator
from typing import Any, Literal

import torch
from diffusers import DiffusionPipeline
from torch import nn

from dsd_lightning.architectures.base import Architecture

log = logging.getLogger(__name__)

Quantization = Literal["fp8", "int8", "nf4"]
Offload = Literal["model", "sequential"]

NO_MEMORY = (
    "out of memory; take less with --model_offload (the parts visit the GPU in turn) or --sequential_offload (layer by "
    "layer, slow), with --quantize fp8, int8 or nf4 (smaller weights), or with a smaller --size or --num_images"
)
"""What is told when memory runs out."""

_LIBRARIES = {"fp8": "torchao", "int8": "torchao", "nf4": "bitsandbytes"}


class QuantizationError(ValueError):
    """Quantisation that is unknown or cannot be had here; the message says what to install or choose."""


def quantize_(architecture: Architecture, kind: Quantization) -> None:
    """Store the weights of the transformer blocks' linear layers in 8 or 4 bits, in place; merge factors before.

    fp8 and int8 are torchao's weight-only formats; nf4 is bitsandbytes' and takes effect when the weights move to a GPU.

    Raises:
        QuantizationError: an unknown kind, a library that is not installed, or factors that are not merged.
    """
    if kind not in _LIBRARIES:
        raise QuantizationError(f"quantize={kind!r} is unknown; choose one of {', '.join(_LIBRARIES)}, or leave it out")
    if architecture.lora is not None:
        raise QuantizationError(f"quantize={kind}: LoRA factors must be merged before; leave merge_lora at true")
    library = _LIBRARIES[kind]
    try:
        module = importlib.import_module("torchao.quantization" if library == "torchao" else library)
    except ImportError as error:
        raise QuantizationError(
            f"quantize={kind} needs {library}, which is not installed: pip install {library} (this project's extra "
            "[quantize] brings it)"
        ) from error
    units = list(architecture.shard_units())
    if kind == "nf4":
        for unit in units:
            _to_nf4(unit, module)
        return
    config = module.Float8WeightOnlyConfig() if kind == "fp8" else module.Int8WeightOnlyConfig()
    for unit in units:
        module.quantize_(unit, config)


def _to_nf4(unit: nn.Module, bitsandbytes: Any) -> None:
    for parent, name, layer in list(_linear_layers(unit)):
        small = bitsandbytes.nn.Linear4bit(
            layer.in_features,
            layer.out_features,
            bias=layer.bias is not None,
            compute_dtype=layer.weight.dtype,
            quant_type="nf4",
        )
        small.weight = bitsandbytes.nn.Params4bit(layer.weight.data, requires_grad=False, quant_type="nf4")
        if layer.bias is not None:
            small.bias = nn.Parameter(layer.bias.data, requires_grad=False)
        setattr(parent, name, small)


def _linear_layers(unit: nn.Module) -> Iterator[tuple[nn.Module, str, nn.Linear]]:
    for parent in unit.modules():
        for name, layer in parent.named_children():
            if isinstance(layer, nn.Linear):
                yield parent, name, layer


def place(pipeline: DiffusionPipeline, offload: Offload | None, device: torch.device | str | None) -> Offload | None:
    """Put a pipeline on `device` (the GPU where there is one, if None), whole or part by part.

    Offload without a GPU does nothing and is warned of: the weights lie in main memory already. Returns the offload that
    is in effect.

    Raises:
        ValueError: an unknown kind of offload, or a device that is not there.
    """
    if offload not in (None, "model", "sequential"):
        raise ValueError(f"offload={offload!r} is unknown; choose model or sequential, or leave it out")
    chosen = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    if chosen.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"device={chosen}: there is no GPU here; leave it out, or give cpu")
    if offload is not None and chosen.type == "cpu":
        log.warning("offload=%s needs a GPU to offload from; there is none in use, so it is left out", offload)
        offload = None
    if offload == "model":
        pipeline.enable_model_cpu_offload(device=chosen)
    elif offload == "sequential":
        pipeline.enable_sequential_cpu_offload(device=chosen)
    else:
        pipeline.to(chosen)
    return offload


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether memory ran out, on a GPU or in main memory."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and "can't allocate memory" in str(error)
