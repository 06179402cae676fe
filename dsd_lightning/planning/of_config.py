"""Counts what the planner needs of a configuration, and plans the configured run."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from diffusers import FluxTransformer2DModel
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf, open_dict
from torch import nn

from dsd_lightning.architectures.base import Architecture
from dsd_lightning.cli.settings import check_settings
from dsd_lightning.compute.gradient_checkpointing import checkpoint_blocks
from dsd_lightning.compute.strategy import ShardedStrategy
from dsd_lightning.files.checkout import in_checkout
from dsd_lightning.flux.base import FluxBase
from dsd_lightning.flux.quantize import LIBRARIES, linear_layers, stored_bytes
from dsd_lightning.models.build import build_architecture, build_base, parks_encoders, require_combinable
from dsd_lightning.planning.checkpointing import AUTO, choose
from dsd_lightning.planning.counters import Cost
from dsd_lightning.planning.gpus import recognise
from dsd_lightning.planning.meta_step import step_cost
from dsd_lightning.planning.plan import (
    ENCODERS,
    GIB,
    CannotPlanError,
    DoesNotFitError,
    Planner,
    Run,
    Sharding,
    fits,
    memory,
    table,
)

log = logging.getLogger(__name__)


def plan(config: DictConfig) -> str:
    """Return what the configured run needs and how long it takes, as a table; see docs/planning.md. Nothing is loaded.

    Raises:
        SettingError: a value that cannot be meant.
        CannotPlanError: if the configuration leaves something open, naming the setting.
    """
    check_settings(config)
    planner: Planner = instantiate(config.planner)
    return table(_count(config, planner), planner)


def choose_checkpointing(config: DictConfig, memory_gib: float) -> str | int:
    """Return the blocks to checkpoint with `gradient_checkpointing=auto`: as few as fit, with `planner.reserve` left free.

    Args:
        config: as `train.py` composes it; with another choice than auto, that is returned.
        memory_gib: of a device, free for the run, GiB.

    Raises:
        CannotPlanError: the configuration leaves something open, so that nothing can be chosen.
    """
    if config.gradient_checkpointing != AUTO:
        given: str | int = config.gradient_checkpointing
        return given
    planner = replace(instantiate(config.planner), gpu_memory_gib=memory_gib)
    try:
        run = _count(config, planner)
    except CannotPlanError as error:
        raise CannotPlanError(f"gradient_checkpointing=auto: {error}; or choose none, all, or a number k") from error
    peak = sum(memory(run, planner).values()) / GIB
    chosen = run.gradient_checkpointing
    log.info("gradient_checkpointing=auto: %s, planned %.1f of %.1f GiB", chosen, peak, memory_gib)
    return int(chosen) if chosen.isdigit() else chosen


def require_fit(config: DictConfig, memory_gib: float, device: str = "") -> None:
    """Refuse a run that a device of `memory_gib` cannot hold; where that cannot be planned, warn and go on.

    Args:
        config: as `train.py` composes it.
        memory_gib: memory that is free, GiB.
        device: CUDA's name of the device; the plan of one that is not known takes the configured throughput.

    Raises:
        DoesNotFitError: with the plan, and settings that would fit.
    """
    planner: Planner = instantiate(config.planner)
    gpu = recognise(device)
    planner = replace(planner, gpu=gpu, gpu_memory_gib=memory_gib, peak_tflops=None if gpu else planner.tflops)
    try:
        run = _count(config, planner)
    except CannotPlanError as error:
        log.warning("whether this run fits was not checked: %s", error)
        return
    if not fits(run, planner):
        raise DoesNotFitError(f"this run does not fit (force=true starts it all the same):\n{table(run, planner)}")


def _count(config: DictConfig, planner: Planner) -> Run:
    resolution = planner.resolution or OmegaConf.select(config, "data.datamodule.source.resolution")
    if resolution is None:
        raise CannotPlanError("this data source has no one resolution: give planner.resolution=[HEIGHT,WIDTH]")
    require_combinable(config)
    gpus = planner.gpus or _devices(config.trainer.devices) * int(config.trainer.num_nodes)
    frame = planner.frame_size(resolution)
    kind = config.base.get("quantize")
    architecture, base = _on_meta(config, quantize=None)
    linear = [layer.weight for unit in architecture.shard_units() for _, _, layer in linear_layers(unit)]
    encoders = planner.encoder_parameters

    def cost(choice: str | int) -> Cost:
        # A new one each time: tracing moves it off meta.
        # In 4 bits a step holds what it holds in 8 beside the codes, and needs no library to be traced.
        traced, _ = _on_meta(config, "int8" if kind == "nf4" else kind)
        checkpoint_blocks(traced, choice)
        return step_cost(
            traced,
            frame,
            base.text_length,
            config.task.relation.frame_weights,
            pixels_per_token=planner.pixels_per_token,
            autocast=str(config.trainer.precision).startswith("bf16"),
        )

    counted: dict[str | int, Cost] = {}

    def run_with(choice: str | int) -> Run:
        counted[choice] = counted.get(choice) or cost(choice)
        return replace(run, costs={str(choice): counted[choice]})

    run = Run(
        frozen=sum(p.numel() for p in architecture.parameters() if not p.requires_grad),
        trained=sum(p.numel() for _, p in architecture.trainable()),
        base_bytes=base.torch_dtype.itemsize,
        encoders=count_stored(Path(base.path), ENCODERS) if encoders is None else encoders,
        ema=config.callbacks.get("ema") is not None,
        costs={},
        batch_size=int(config.data.datamodule.batch_size),
        accumulate=int(config.trainer.accumulate_grad_batches),
        steps=int(config.trainer.max_steps),
        gpus=gpus,
        sharding=_sharding(config, architecture, gpus),
        rank=None if architecture.lora is None else architecture.lora.rank,
        parked=parks_encoders(config),
        quantize=kind,
        linear=sum(weight.numel() for weight in linear),
        stored={each: sum(stored_bytes(each, *weight.shape) for weight in linear) for each in LIBRARIES},
        frame=frame,
        optimizer=_optimizer(config.optimizer),
    )
    chosen = config.gradient_checkpointing
    if chosen == AUTO:
        available = planner.free_gib * GIB * (1 - planner.reserve)
        chosen = choose(lambda choice: sum(memory(run_with(choice), planner).values()), available)
    run = run_with(chosen)
    if not fits(run, planner) and chosen != "all":
        more = [choice for choice in (2, "all") if choice != chosen]
        run = replace(run, costs={**run.costs, **{str(choice): cost(choice) for choice in more}})
    return run


def count_stored(base: Path, parts: Iterable[str]) -> int:
    """Return the number of values in the safetensors files of a base's parts; only their headers are read.

    Raises:
        ValueError: if a part has no such file here, as that of a hub id has not.
    """
    count = 0
    for part in parts:
        files = sorted((base / part).glob("*.safetensors"))
        if not files:
            raise ValueError(f"{base / part} holds no safetensors file to count: give planner.encoder_parameters")
        for file in files:
            with file.open("rb") as stream:
                header = json.loads(stream.read(int.from_bytes(stream.read(8), "little")))
            count += sum(math.prod(entry["shape"]) for name, entry in header.items() if name != "__metadata__")
    return count


def _devices(devices: int | str | Sequence[int]) -> int:
    """Return how many devices a node has; `auto` and -1 are the GPUs of this machine, or one where there is none."""
    try:
        if isinstance(devices, Sequence) and not isinstance(devices, str):
            return len(devices)
        if devices == "auto" or int(devices) == -1:
            return max(1, torch.cuda.device_count())
        if int(devices) >= 1:
            return int(devices)
    except ValueError:
        pass
    raise CannotPlanError(f"trainer.devices={devices} is no number of devices: give planner.gpus")


def _optimizer(config: DictConfig) -> str:
    """Return the optimizer's name and its learning rates, for people."""
    rates = ", ".join(f"{name} {config[name]:g}" for name in ("lr", "muon_lr") if name in config)
    return f"{config['_target_'].rpartition('.')[2]}, {rates}"


def _sharding(config: DictConfig, architecture: Architecture, gpus: int) -> Sharding:
    """Return how the configured strategy shards the model."""
    strategy = config.trainer.strategy
    if isinstance(strategy, str):
        if strategy != "auto" and not strategy.startswith("ddp"):
            raise CannotPlanError(
                f"plan=true cannot plan trainer.strategy={strategy}: choose trainer/strategy=single, ddp, fsdp, "
                "adapter_shard or hybrid"
            )
        return Sharding()
    built: Any = instantiate(strategy)
    if not isinstance(built, ShardedStrategy) or gpus == built.replicas:
        return Sharding()
    if gpus % built.replicas:
        raise ValueError(f"trainer.strategy.replicas={built.replicas} does not divide the {gpus} GPUs")

    def size(module: nn.Module) -> int:
        kept = (p for p in module.parameters() if p.requires_grad or built.shard_frozen)
        return sum(p.numel() * p.element_size() for p in kept)

    units = sorted((size(unit) for unit in architecture.shard_units()), reverse=True)
    everything = size(architecture)
    # The block at work, the next one on its way, and what belongs to no block.
    held = sum(units[:2]) + everything - sum(units) if built.reshard_after_forward else everything
    return Sharding(gpus // built.replicas, built.shard_frozen, held / everything)


def _on_meta(config: DictConfig, quantize: str | None) -> tuple[Architecture, FluxBase]:
    """Return the configured architecture without memory, as it starts on the bare base stored as `quantize` says."""
    config = config.copy()
    with open_dict(config):
        config.base.quantize = quantize
        config.base.model.path = in_checkout(config.base.model.path)
        # What a run starts from changes values, not counts.
        config.init_from, config.base.model.initialise = None, "meta"
        if config.base.model.attention_backend != "_native_math":
            config.base.model.attention_backend = None  # all others keep as much
        if config.base.model.get("transformer_config") is None:
            stored = FluxTransformer2DModel.load_config(config.base.model.path, subfolder="transformer")
            config.base.model.transformer_config = {k: v for k, v in stored.items() if not k.startswith("_")}
    # The plan states once what every architecture that it counts would log.
    before = logging.root.manager.disable
    logging.disable(logging.INFO)
    try:
        base = build_base(config)
        return build_architecture(config, base), base
    finally:
        logging.disable(before)
