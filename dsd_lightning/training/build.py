"""Builds the LightningModule of a configuration, complete."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from hydra.utils import instantiate
from omegaconf import DictConfig

from dsd_lightning.compute.gradient_checkpointing import checkpoint_blocks
from dsd_lightning.compute.machine import AUTO as COMPILE_AUTO
from dsd_lightning.compute.machine import compile_blocks
from dsd_lightning.flux.placement import park
from dsd_lightning.models.build import build_architecture, build_base, parks_encoders
from dsd_lightning.module import DiffusionSelfDistillation
from dsd_lightning.sampler import Shift


def build_module(
    config: DictConfig, sizes: Iterable[tuple[int, int]] = (), checkpointing: str | int | None = None
) -> DiffusionSelfDistillation:
    """Return the module of a configuration, complete: base loaded, reference parts added, factors attached.

    Args:
        config: as `train.py` composes it.
        sizes: (height, width) of the frames to come, pixels; sizes that the VAE cannot pack are refused before the
            transformer is loaded.
        checkpointing: blocks that compute their activations again; None: as `gradient_checkpointing` says, which may not be
            auto then.
    """
    parked = parks_encoders(config)
    base = build_base(config)
    shift: Any = instantiate(config.shift)
    if not isinstance(shift, Shift):
        shift = shift(base)
    codec = base.codec()
    for height, width in sizes:
        codec.require_size(height, width)
    architecture = build_architecture(config, base)
    checkpoint_blocks(architecture, config.gradient_checkpointing if checkpointing is None else checkpointing)
    # Layers in 8 or 4 bits call kernels of other libraries, which are compiled on request alone.
    leave_out = config.compile == COMPILE_AUTO and config.base.get("quantize") is not None
    compile_blocks(architecture.shard_units(), False if leave_out else config.compile)
    module = DiffusionSelfDistillation(
        architecture=architecture,
        codec=codec,
        text_encoder=base.text_encoder(),
        task=instantiate(config.task.relation),
        density=instantiate(config.density),
        shift=shift,
        dropout=instantiate(config.dropout),
        optimizer=instantiate(config.optimizer),
        schedule=instantiate(config.schedule),
        guidance_scale=base.guidance_scale,
        sampler=instantiate(config.sampler),
        seed=config.seed,
    )
    if parked:
        park(module, ("codec", "text_encoder"), where=lambda: module.device)
    return module
