"""Applies the configured optimizer settings to a resumed run, whose checkpoint brings the earlier ones along."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

import lightning as L
from torch import Tensor
from torch.optim.lr_scheduler import LambdaLR

log = logging.getLogger(__name__)

BASE_RATE, RATE = "initial_lr", "lr"
"""Keys of a parameter group: the learning rate that the schedule scales, and the scaled one."""

_NOT_SETTINGS = ("params", "param_names", RATE)


class ConfiguredOptimizer(L.Callback):
    """Sets the optimizer's settings (learning rates, weight decay, betas) to the configured ones after a resume.

    Equal ones are not touched, so that an unchanged run goes on bit for bit. What the schedule depends on (steps, warmup) is
    the configuration's already: a checkpoint holds where the schedule is and not what it computes.
    """

    def __init__(self) -> None:
        self._configured: list[dict[str, Any]] = []
        self._here: list[tuple[int, frozenset[str]]] | None = None
        self._saved: list[tuple[int, frozenset[str]]] | None = None

    def on_load_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        """Refuse the state of another optimizer."""
        self._saved = [_form(group) for state in checkpoint["optimizer_states"] for group in state["param_groups"]]
        self._require_same()

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Note the configured settings of every parameter group, before the checkpoint's replace them."""
        groups = [group for optimizer in trainer.optimizers for group in optimizer.param_groups]
        self._configured = [{name: group[name] for name in group if name not in _NOT_SETTINGS} for group in groups]
        self._here = [_form(group) for group in groups]
        self._require_same()

    def _require_same(self) -> None:
        """Compare once both are known; which comes first depends on the strategy."""
        if self._here is not None and self._saved is not None and self._here != self._saved:
            raise ValueError(
                "the checkpoint holds the state of another optimizer, or of one over other parameters: set optimizer=... as "
                "it was, or start from its weights alone with init_from=CHECKPOINT ckpt=null"
            )

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Put those back that differ."""
        groups = [group for optimizer in trainer.optimizers for group in optimizer.param_groups]
        for number, (group, configured) in enumerate(zip(groups, self._configured, strict=True)):
            for name, value in configured.items():
                if name in group and not _equal(group[name], value):
                    log.info("optimizer, parameter group %d: %s was %s and is %s", number, name, group[name], value)
                    group[name] = value
        for entry in trainer.lr_scheduler_configs:
            if isinstance(entry.scheduler, LambdaLR):
                _rescale(entry.scheduler)


def _form(group: Mapping[str, Any]) -> tuple[int, frozenset[str]]:
    """Return the number of parameters of a group, and the names of its settings."""
    return len(group["params"]), frozenset(group) - {*_NOT_SETTINGS, BASE_RATE}


def _rescale(schedule: LambdaLR) -> None:
    """Set the learning rates of a schedule's position from its groups' base rates, where these have changed."""
    rates = []
    for index, group in enumerate(schedule.optimizer.param_groups):
        if not _equal(schedule.base_lrs[index], group[BASE_RATE]):
            schedule.base_lrs[index] = group[BASE_RATE]
            rate = group[BASE_RATE] * schedule.lr_lambdas[index](schedule.last_epoch)
            if isinstance(group[RATE], Tensor):
                group[RATE].fill_(rate)
            else:
                group[RATE] = rate
        rates.append(group[RATE])
    schedule._last_lr = rates


def _equal(before: Any, now: Any) -> bool:
    """Return whether two settings are the same; a pair may have become a list."""
    if isinstance(before, list | tuple) and isinstance(now, list | tuple):
        return list(before) == list(now)
    return bool(before == now)
