"""A training run from its configuration: what is built, in which order, and what is refused before anything is loaded."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import lightning as L
import torch
from diffusers import FluxTransformer2DModel
from hydra.utils import instantiate
from lightning.pytorch.loggers import Logger, WandbLogger
from omegaconf import DictConfig, OmegaConf, open_dict
from torch import nn

from dsd_lightning.architectures.base import Architecture
from dsd_lightning.checkpoints.adapter import check_header, read_header
from dsd_lightning.checkpoints.folder_io import FolderCheckpointIO, find_last
from dsd_lightning.checkpoints.restore import start_from
from dsd_lightning.console import tidy
from dsd_lightning.flux.base import FluxBase
from dsd_lightning.flux.cost import Cost
from dsd_lightning.machine import compile_blocks, keep_memory
from dsd_lightning.module import DiffusionSelfDistillation
from dsd_lightning.parallelism.recompute import recompute
from dsd_lightning.parallelism.strategy import ShardedStrategy
from dsd_lightning.planning import (
    ENCODERS,
    GIB,
    Division,
    DoesNotFitError,
    Planner,
    Run,
    count_stored,
    fits,
    table,
)
from dsd_lightning.rectified_flow import ResolutionShift
from dsd_lightning.run_folder import SUMMARY
from dsd_lightning.run_state import claim, is_finished, read_summary, record, require_same
from dsd_lightning.sampler import Shift
from dsd_lightning.trial import step_cost

log = logging.getLogger(__name__)

AUTO = "auto"
"""The value of `ckpt` that leaves it to the run's folder whether there is anything to do, and from where."""


def shift_of_base(base: FluxBase) -> ResolutionShift:
    """Return the timestep shift that the base's scheduler asks for (`shift=resolution`)."""
    return base.resolution_shift()


def build_architecture(config: DictConfig, base: FluxBase | None = None) -> Architecture:
    """Return the architecture of a configuration, complete: transformer loaded, reference parts and factors added.

    Needs no other part of the base; with `base.model.initialise=meta` no weights either, and no memory.

    Args:
        config: as `train.py` composes it.
        base: built from `config` if None.

    Raises:
        BaseModelError, LoraError, AdapterMismatchError, OfficialWeightsError: see there.
        ValueError: if nothing would be trained.
    """
    base = base or build_base(config)
    # Before the transformer is loaded: wrong settings, or an image encoder that is missing, are told at once.
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
    log.info("%s on %s: %s parameters are trained", architecture.name, base.path, f"{trained:,}")
    return architecture


def build_base(config: DictConfig) -> FluxBase:
    """Return the base model's place, none of it loaded yet; a local folder that lacks a part is refused."""
    base: FluxBase = instantiate(config.base.model)
    base.require_parts()
    return base


def build_module(config: DictConfig, sizes: Iterable[tuple[int, int]] = ()) -> DiffusionSelfDistillation:
    """Return the module of a configuration, complete: base loaded, reference parts added, factors attached.

    Args:
        config: as `train.py` composes it.
        sizes: (height, width) of the frames to come, pixels; sizes that the VAE cannot pack are refused before the
            transformer is loaded.
    """
    base = build_base(config)
    shift: Any = instantiate(config.shift)
    if not isinstance(shift, Shift):
        shift = shift(base)
    codec = base.codec()
    for height, width in sizes:
        codec.require_size(height, width)
    architecture = build_architecture(config, base)
    recompute(architecture, config.recompute)
    compile_blocks(architecture.shard_units(), config.compile)
    return DiffusionSelfDistillation(
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


def plan(config: DictConfig) -> str:
    """Return what the configured run needs and how long it takes, as a table; see docs/planning.md. Nothing is loaded.

    Raises:
        ValueError: if the configuration leaves open what has to be known, naming the setting.
    """
    planner: Planner = instantiate(config.planner)
    return table(_count(config, planner), planner)


def require_fit(config: DictConfig, memory_gib: float) -> None:
    """Refuse a run that a device of `memory_gib` cannot hold.

    Raises:
        DoesNotFitError: with the plan, and settings that would fit.
    """
    planner: Planner = replace(instantiate(config.planner), gpu_memory_gib=memory_gib)
    run = _count(config, planner)
    if not fits(run, planner):
        raise DoesNotFitError(f"this run does not fit (force=true starts it all the same):\n{table(run, planner)}")


def _count(config: DictConfig, planner: Planner) -> Run:
    resolution = planner.resolution or OmegaConf.select(config, "data.datamodule.source.resolution")
    if resolution is None:
        raise ValueError("this data source has no one resolution: give planner.resolution=[HEIGHT,WIDTH]")
    gpus = planner.gpus
    if gpus is None:
        if not isinstance(config.trainer.devices, int) or config.trainer.devices < 1:
            raise ValueError(f"trainer.devices={config.trainer.devices} is no number of devices: give planner.gpus")
        gpus = config.trainer.devices * int(config.trainer.num_nodes)
    architecture, base = _on_meta(config)
    encoders = planner.encoder_parameters

    def cost(choice: str | int) -> Cost:
        # A new one each time: a traced one has lost its place on meta.
        traced, _ = _on_meta(config)
        recompute(traced, choice)
        return step_cost(
            traced,
            planner.frame_size(resolution),
            base.text_length,
            config.task.relation.frame_weights,
            pixels_per_token=planner.pixels_per_token,
            autocast=config.trainer.precision == "bf16-mixed",
        )

    run = Run(
        frozen=sum(p.numel() for p in architecture.parameters() if not p.requires_grad),
        trained=sum(p.numel() for _, p in architecture.trainable()),
        base_bytes=base.torch_dtype.itemsize,
        encoders=count_stored(Path(base.path), ENCODERS) if encoders is None else encoders,
        averaged=config.callbacks.get("ema") is not None,
        costs={str(config.recompute): cost(config.recompute)},
        batch_size=int(config.data.datamodule.batch_size),
        accumulate=int(config.trainer.accumulate_grad_batches),
        steps=int(config.trainer.max_steps),
        gpus=gpus,
        division=_division(config, architecture, gpus),
        rank=None if architecture.lora is None else architecture.lora.rank,
    )
    if not fits(run, planner) and config.recompute != "all":
        more = [choice for choice in (2, "all") if choice != config.recompute]
        run = replace(run, costs={**run.costs, **{str(choice): cost(choice) for choice in more}})
    return run


def _division(config: DictConfig, architecture: Architecture, gpus: int) -> Division:
    """Return what lies in pieces under the configured strategy."""
    strategy = config.trainer.strategy
    if isinstance(strategy, str):
        if strategy != "auto" and not strategy.startswith("ddp"):
            raise ValueError(
                f"plan=true does not know trainer.strategy={strategy}: choose trainer/strategy=single, ddp, fsdp, "
                "adapter_shard or hybrid"
            )
        return Division()
    built: Any = instantiate(strategy)
    if not isinstance(built, ShardedStrategy) or gpus == built.replicas:
        return Division()
    if gpus % built.replicas:
        raise ValueError(f"trainer.strategy.replicas={built.replicas} does not divide the {gpus} GPUs")

    def size(module: nn.Module) -> int:
        kept = (p for p in module.parameters() if p.requires_grad or built.divide_frozen)
        return sum(p.numel() * p.element_size() for p in kept)

    units = sorted((size(unit) for unit in architecture.shard_units()), reverse=True)
    everything = size(architecture)
    # The block at work, the next one on its way, and what belongs to no block.
    held = sum(units[:2]) + everything - sum(units) if built.reshard_after_forward else everything
    return Division(gpus // built.replicas, built.divide_frozen, held / everything)


def _on_meta(config: DictConfig) -> tuple[Architecture, FluxBase]:
    """Return the configured architecture without memory, as it starts on the bare base."""
    config = config.copy()
    with open_dict(config):
        # What a run starts from changes values, not counts.
        config.init_from, config.base.model.initialise = None, "meta"
        if config.base.model.attention_backend != "_native_math":
            config.base.model.attention_backend = None  # all others keep as much
        if config.base.model.get("transformer_config") is None:
            known = FluxTransformer2DModel.load_config(config.base.model.path, subfolder="transformer")
            config.base.model.transformer_config = {k: v for k, v in known.items() if not k.startswith("_")}
    base = build_base(config)
    return build_architecture(config, base), base


def find_checkpoint(ckpt: str | None, run_dir: Path) -> Path | None:
    """Return the checkpoint folder that `ckpt` names, or None to start anew: null, or "auto" where there is none yet.

    Raises:
        FileNotFoundError: if there is none, naming what was looked for and where.
    """
    if ckpt is None:
        return None
    found = find_last(run_dir / "checkpoints") if ckpt in ("last", AUTO) else Path(ckpt)
    if found is None and ckpt == AUTO:
        return None
    if found is None:
        raise FileNotFoundError(
            f"ckpt=last, but {run_dir / 'checkpoints'} holds no whole checkpoint; start anew with ckpt=null, or name a "
            "checkpoint folder"
        )
    if not found.is_dir():
        raise FileNotFoundError(f"ckpt={ckpt}: no such checkpoint folder")
    return found


def train(config: DictConfig, run_dir: Path) -> dict[str, float]:
    """Run the configured training in `run_dir` and return the figures that the callbacks measured.

    With `ckpt=auto`, start anew, go on from the last checkpoint, or do nothing if the run is finished or another process
    is at it (then the figures are empty), so that one command can be given again and again, and several times at once.

    Raises:
        OtherRunError: with `ckpt=auto`, if the folder holds a run of another configuration.
    """
    if config.ckpt != AUTO:
        return _train(config, run_dir)
    with claim(run_dir) as mine:
        if not mine:
            log.warning("%s: another process trains this run; it is left alone", run_dir)
            return {}
        require_same(config, run_dir)
        if is_finished(run_dir):
            log.info("%s: finished before; there is nothing to do", run_dir)
            return {}
        return _train(config, run_dir)


def _train(config: DictConfig, run_dir: Path) -> dict[str, float]:
    """Run the training.

    What is cheap to check is checked first: a wrong value is refused before the base is loaded, and a checkpoint of
    another architecture before the data is encoded.
    """
    tidy()
    if not torch.cuda.is_available():
        keep_memory()
    L.seed_everything(config.seed, workers=True, verbose=False)
    checkpoint = find_checkpoint(config.ckpt, run_dir)
    data: L.LightningDataModule = instantiate(config.data.datamodule)
    # An experiment may give settings to a callback that the chosen group leaves out (callbacks=minimal).
    callbacks = [instantiate(each) for each in config.callbacks.values() if each and "_target_" in each]
    loggers: list[Logger] = [instantiate(each) for each in config.logger.values() if each is not None]
    trainer: L.Trainer = instantiate(
        config.trainer, callbacks=callbacks, logger=loggers or False, plugins=[FolderCheckpointIO()]
    )
    if trainer.strategy.root_device.type == "cuda" and not config.force:
        require_fit(config, torch.cuda.mem_get_info(trainer.strategy.root_device)[0] / GIB)
    module = build_module(config, getattr(data, "sizes", ()))
    if checkpoint is not None:
        check_header(read_header(checkpoint), module.architecture)
    record(config, run_dir)
    exit_code = 1
    try:
        trainer.fit(module, datamodule=data, ckpt_path=str(checkpoint) if checkpoint else None)
        exit_code = 0
    finally:
        _close(loggers, exit_code)
    return dict(getattr(module, "summary", {}))


def _close(loggers: Iterable[Logger], exit_code: int) -> None:
    """End the W&B run: the next run of a sweep, in this process, would otherwise go on in it."""
    for logger in loggers:
        if isinstance(logger, WandbLogger) and logger._experiment is not None:
            logger.experiment.finish(exit_code=exit_code)


HEADLINES = (
    "identity_accuracy_before",
    "identity_accuracy",
    "prompt_accuracy",
    "mask_iou_before",
    "mask_iou",
    "mask_iou_ceiling",
    "depth_abs_rel",
    "light_direction_accuracy",
    "light_color_accuracy",
    "copy_paste",
    "reference_psnr",
    "seconds",
)


def report(run_dir: Path) -> str:
    """Return where the results of a finished run lie, and its headline figures."""
    figures = read_summary(run_dir)
    lines = [f"run folder    {run_dir}"]
    sheets = sorted((run_dir / "samples").glob("step_*.png"))
    if sheets:
        lines.append(f"sample sheet  {sheets[-1]}")
    if figures:
        lines.append(f"figures       {run_dir / SUMMARY}")
    lines += [f"  {name:<26}{figures[name]:.4g}" for name in HEADLINES if name in figures]
    return "\n".join(lines)
