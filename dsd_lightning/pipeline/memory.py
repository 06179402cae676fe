"""Fits a pipeline into a device's memory: quantised weights, offload, and the message when memory runs out."""

from __future__ import annotations

import logging
from typing import Literal

import torch
from diffusers import DiffusionPipeline

from dsd_lightning.architectures.base import Architecture
from dsd_lightning.compute.device import find_device
from dsd_lightning.flux.quantize import QuantizationError, quantize_, require_known

log = logging.getLogger(__name__)

Quantization = Literal["fp8", "int8", "nf4"]
Offload = Literal["model", "sequential"]

NO_MEMORY = (
    "out of memory; take less with --model_offload (the parts visit the GPU in turn) or --sequential_offload (layer by "
    "layer, slow), with --quantize fp8, int8 or nf4 (smaller weights), or with a smaller --size or --num_images"
)
"""The message when memory runs out."""


def quantize(architecture: Architecture, kind: Quantization) -> None:
    """Store the weights of the transformer blocks' linear layers in 8 or 4 bits, in place; merge factors before.

    Raises:
        QuantizationError: an unknown kind, a library that is not installed, or factors that are not merged.
    """
    require_known(kind)
    if architecture.lora is not None:
        raise QuantizationError(f"quantize={kind}: LoRA factors must be merged before; leave merge_lora at true")
    quantize_(architecture.shard_units(), kind)


def place(pipeline: DiffusionPipeline, offload: Offload | None, device: torch.device | str | None) -> Offload | None:
    """Put a pipeline on `device` (the GPU where there is one, if None), at once or part by part.

    Offload without a GPU does nothing and is warned of: the weights are in main memory already. Returns the offload that
    is in effect.

    Raises:
        ValueError: an unknown kind of offload.
        DeviceError: a device that is not there.
    """
    if offload not in (None, "model", "sequential"):
        raise ValueError(f"offload={offload!r} is unknown; choose model or sequential, or leave it out")
    chosen = find_device(device)
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
