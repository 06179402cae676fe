"""Runs a training from its configuration: checks, builds, trains, records and reports, in this order."""

from __future__ import annotations

import logging
import shlex
from collections.abc import Iterable, Sequence
from pathlib import Path

import lightning as L
import torch
from hydra.utils import instantiate
from lightning.pytorch.loggers import Logger, WandbLogger
from lightning.pytorch.utilities import rank_zero_only
from omegaconf import DictConfig, OmegaConf

from dsd_lightning.checkpoints.adapter import check_header, read_header
from dsd_lightning.checkpoints.folder_io import find_last
from dsd_lightning.cli.console import tidy
from dsd_lightning.cli.settings import check_settings
from dsd_lightning.compute.autocast import without_weight_cache
from dsd_lightning.compute.cuda import prepare_cuda, warn_of_small_shared_memory
from dsd_lightning.compute.machine import keep_memory, require_precision
from dsd_lightning.planning.checkpointing import AUTO as CHECKPOINTING_AUTO
from dsd_lightning.planning.gpus import CONTEXT_GIB
from dsd_lightning.planning.of_config import choose_checkpointing, require_fit
from dsd_lightning.planning.plan import GIB
from dsd_lightning.runs.folder import CHECKPOINTS, CONFIG, SAMPLES, SUMMARY, read_overrides, write_config
from dsd_lightning.runs.resume import changes_since, claim, is_finished, read_summary, require_same
from dsd_lightning.training.build import build_module
from dsd_lightning.training.resumed import ConfiguredOptimizer

log = logging.getLogger(__name__)

AUTO = "auto"
"""The value of `ckpt` that leaves it to the run's folder whether there is anything to do, and from where."""


class Record(L.Callback):
    """Writes the run's record once nothing can refuse the run any more: all is built, and a checkpoint is loaded."""

    def __init__(self, config: DictConfig, run_dir: Path, overrides: Sequence[str]) -> None:
        self.config, self.run_dir, self.overrides = config, run_dir, overrides

    @rank_zero_only
    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Write it."""
        write_config(self.config, self.run_dir, self.overrides)


def find_checkpoint(ckpt: str | None, run_dir: Path) -> Path | None:
    """Return the checkpoint folder that `ckpt` names, or None to train from the start: null, or "auto" without one.

    Raises:
        FileNotFoundError: if there is none, naming what was looked for and where.
    """
    if ckpt is None:
        return None
    # The first process reads every file; what it has checked is read by all (`FolderCheckpointIO.load_checkpoint`).
    contents = not getattr(rank_zero_only, "rank", 0)
    checkpoint = find_last(run_dir / CHECKPOINTS, contents=contents) if ckpt in ("last", AUTO) else Path(ckpt)
    if checkpoint is None and ckpt == AUTO:
        return None
    if checkpoint is None:
        raise FileNotFoundError(
            f"ckpt=last, but {run_dir / CHECKPOINTS} holds no complete checkpoint; start again with ckpt=null, or name a "
            "checkpoint folder"
        )
    if not checkpoint.is_dir():
        raise FileNotFoundError(f"ckpt={ckpt}: no such checkpoint folder")
    if (checkpoint / CHECKPOINTS).is_dir():  # a run's folder
        last = find_last(checkpoint / CHECKPOINTS, contents=contents)
        if last is None:
            raise FileNotFoundError(f"ckpt={ckpt}: {checkpoint / CHECKPOINTS} holds no complete checkpoint")
        return last
    return checkpoint


def train(config: DictConfig, run_dir: Path, overrides: Sequence[str] = ()) -> dict[str, float]:
    """Run the configured training in `run_dir` and return the metrics that the callbacks measured.

    With `ckpt=auto`, start, go on from the last checkpoint, or do nothing if the run is finished or another process
    trains it (then the metrics are empty), so that one command can be repeated, also several times at once.

    Args:
        config: as `train.py` composes it.
        run_dir: the run's folder.
        overrides: of the command, for the run's record.

    Raises:
        SettingError: a value that cannot be meant.
        OtherRunError: with `ckpt=auto`, if the folder holds a run of another configuration.
    """
    check_settings(config)
    if config.ckpt != AUTO:
        return _train(config, run_dir, overrides)
    with claim(run_dir) as is_free:
        if not is_free:
            log.warning("%s: another process trains this run; it is left alone", run_dir)
            return {}
        require_same(config, run_dir)
        if is_finished(run_dir):
            log.info("%s: finished before; there is nothing to do", run_dir)
            return {}
        return _train(config, run_dir, overrides)


def _train(config: DictConfig, run_dir: Path, overrides: Sequence[str]) -> dict[str, float]:
    """Run the training.

    What is cheap to check is checked first: a wrong value is refused before the base is loaded, and a checkpoint of
    another architecture before the data is encoded.
    """
    tidy()
    require_precision(config.trainer.precision)
    if torch.cuda.is_available():
        prepare_cuda()
    else:
        keep_memory()
    warn_of_small_shared_memory(int(OmegaConf.select(config, "data.datamodule.source.workers", default=0)))
    L.seed_everything(config.seed, workers=True, verbose=False)
    checkpoint = find_checkpoint(config.ckpt, run_dir)
    changed = [] if checkpoint is None else changes_since(config, run_dir, checkpoint)
    data: L.LightningDataModule = instantiate(config.data.datamodule)
    # An experiment may give settings to a callback that the chosen group leaves out (callbacks=minimal).
    callbacks = [instantiate(each) for each in config.callbacks.values() if each and "_target_" in each]
    loggers: list[Logger] = [instantiate(each) for each in config.logger.values() if each is not None]
    trainer: L.Trainer = instantiate(
        config.trainer,
        callbacks=[Record(config, run_dir, overrides), ConfiguredOptimizer(), *callbacks],
        logger=loggers or False,
        plugins=[instantiate(config.checkpoint_io)],
    )
    device = trainer.strategy.root_device
    checkpointing = _checkpointing(config, device)
    if device.type == "cuda" and not config.force:
        planned = config.copy()
        planned.gradient_checkpointing = checkpointing
        require_fit(planned, torch.cuda.mem_get_info(device)[0] / GIB, torch.cuda.get_device_name(device))
    module = build_module(config, getattr(data, "sizes", ()), checkpointing)
    if checkpoint is not None:
        check_header(read_header(checkpoint), module.architecture)
    if changed:
        log.info("resuming %s with other settings, which apply from here on:\n  %s", checkpoint, "\n  ".join(changed))
    exit_code = 1
    try:
        with without_weight_cache():
            trainer.fit(module, datamodule=data, ckpt_path=str(checkpoint) if checkpoint else None)
        exit_code = 0
    finally:
        if exit_code and trainer.is_global_zero and (last := find_last(run_dir / CHECKPOINTS)) is not None:
            log.info("stopped; %s holds all until then. Resume: %s", last, resuming(run_dir))
        _close(loggers, exit_code)
    return dict(getattr(module, "summary", {}))


def _checkpointing(config: DictConfig, device: torch.device) -> str | int:
    """Return the blocks that compute their activations again; auto: by the memory of a GPU, and none on a CPU.

    By all memory, not by what is free: every process of a run must choose the same.
    """
    if device.type != "cuda":
        given: str | int = config.gradient_checkpointing
        return "none" if given == CHECKPOINTING_AUTO else given
    return choose_checkpointing(config, torch.cuda.get_device_properties(device).total_memory / GIB - CONTEXT_GIB)


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


def resuming(run_dir: Path, *changed: str) -> str:
    """Return the command that resumes the run of a folder, with some overrides changed."""
    changed = (*changed, "ckpt=last", f"hydra.run.dir={run_dir}")
    names = {each.partition("=")[0] for each in changed}
    given = [each for each in read_overrides(run_dir) if each.partition("=")[0] not in names]
    return shlex.join(["python", "train.py", *given, *changed])


def report(run_dir: Path) -> str:
    """Return where the results of a finished run are, its headline metrics, and the commands that use it."""
    metrics = read_summary(run_dir)
    lines = [f"run folder    {run_dir}"]
    sheets = sorted((run_dir / SAMPLES).glob("step_*.png"))
    if sheets:
        lines.append(f"sample sheet  {sheets[-1]}")
    if metrics:
        lines.append(f"metrics       {run_dir / SUMMARY}")
    lines += [f"  {name:<26}{metrics[name]:.4g}" for name in HEADLINES if name in metrics]
    run = shlex.quote(str(run_dir))
    lines += [
        "next",
        f"  curves      python -m dsd_lightning.runs plot {run}",
        f'  generate    python generate.py --run {run} --image_path IMAGE --text "PROMPT"',
        f"  score       python evaluate.py method.maker.run={run}",
    ]
    if any((run_dir / "wandb").glob("offline-run-*")):
        lines.append(f"  upload      wandb sync {run}/wandb/offline-run-*")
    if (run_dir / CONFIG).is_file():
        lines.append(f"  go on       {resuming(run_dir, 'trainer.max_steps=STEPS')}")
    return "\n".join(lines)
