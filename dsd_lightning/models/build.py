"""Builds base and architecture from a configuration, and refuses what does not go together before weights are loaded."""

from __future__ import annotations

import logging
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import torch
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from dsd_lightning.architectures.base import Architecture
from dsd_lightning.compute.machine import AUTO
from dsd_lightning.files.checkout import in_checkout
from dsd_lightning.flux.base import FluxBase, Shift
from dsd_lightning.flux.quantize import QuantizationError, import_library, quantize_, require_known
from dsd_lightning.models.restore import start_from

log = logging.getLogger(__name__)


def shift_of_base(base: FluxBase) -> Shift:
    """Return the timestep shift that the base's scheduler asks for (`shift=resolution`)."""
    return base.shift()


def build_architecture(config: DictConfig, base: FluxBase | None = None) -> Architecture:
    """Return the architecture of a configuration, complete: transformer loaded, reference parts and factors added.

    Needs no other part of the base; with `base.model.initialise=meta` no weights either, and no memory.

    Args:
        config: as `train.py` composes it.
        base: built from `config` if None.

    Raises:
        BaseModelError, LoraError, AdapterMismatchError, OfficialWeightsError, QuantizationError: see there.
        ValueError: if nothing would be trained.
    """
    require_combinable(config)
    base = base or build_base(config)
    # Before the transformer is loaded: wrong settings, a library or an image encoder that is missing, are reported at once.
    if config.base.get("quantize") is not None and base.initialise != "meta":
        import_library(config.base.quantize)
    build: Any = instantiate(config.arch)
    torch.manual_seed(config.seed)
    transformer = base.transformer()
    with transformer.device if transformer.device.type == "meta" else nullcontext():
        architecture: Architecture = build(transformer=transformer)
    if config.init_from is not None:
        start_from(config.init_from, architecture)
    trained = sum(parameter.numel() for _, parameter in architecture.trainable())
    if trained == 0:
        raise ValueError("nothing would be trained: give arch.lora, or arch.train_base=true")
    if config.base.get("quantize") is not None:
        # After the factors are attached, and after other weights have taken the base's place.
        quantize_(architecture.shard_units(), config.base.quantize)
    log.info("%s on %s: %s parameters are trained", architecture.name, base.path, f"{trained:,}")
    return architecture


def require_combinable(config: DictConfig) -> None:
    """Refuse settings that are sound by themselves and do not go together: 8 or 4 bits with trained or sharded weights.

    Raises:
        QuantizationError: naming both settings and the remedy.
    """
    shards_frozen = OmegaConf.select(config, "trainer.strategy.shard_frozen")  # None: nothing is sharded
    if shards_frozen is not None and "8bit" in config.optimizer["_target_"].lower():
        raise QuantizationError(
            "an optimizer with moments of 8 bits, and a strategy that shards them: blocks of moments that share a scale "
            "cannot be all-gathered; choose trainer/strategy=single or ddp, or optimizer=adamw"
        )
    kind = config.base.get("quantize")
    if kind is None:
        return
    require_known(kind)
    if config.arch.get("train_base", False):
        raise QuantizationError(
            f"base.quantize={kind} with arch.train_base=true: what is trained cannot be stored in so few bits; set "
            "base.quantize=null, or arch.train_base=false"
        )
    if shards_frozen:
        raise QuantizationError(
            f"base.quantize={kind} with a strategy that shards the base: quantised weights cannot be sharded; choose "
            "trainer/strategy=single, ddp or adapter_shard, or base.quantize=null"
        )


def build_base(config: DictConfig) -> FluxBase:
    """Return the base model's place, none of it loaded yet; a local folder that lacks a part is refused."""
    base: FluxBase = instantiate(config.base.model)
    base = replace(base, path=in_checkout(base.path))
    base.require_parts()
    return base


def parks_encoders(config: DictConfig) -> bool:
    """Return whether VAE and text encoders wait in main memory: as `park_encoders` says, or if pairs come encoded.

    Raises:
        ValueError: another value.
    """
    wanted = config.park_encoders
    if wanted not in (True, False, AUTO):
        raise ValueError(f"park_encoders={wanted} is unknown; choose true, false or {AUTO}")
    return bool(config.data.get("encoded", False)) if wanted == AUTO else bool(wanted)
