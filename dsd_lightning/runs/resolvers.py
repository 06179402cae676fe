"""Resolvers that the configuration calls as `${name:...}`: the folder of a run, and what depends on the machine."""

from __future__ import annotations

import functools
import itertools
import netrc
import os
import sys
from collections.abc import Callable
from datetime import datetime
from typing import Any

from omegaconf import OmegaConf

from dsd_lightning.cli.groups import describe_groups
from dsd_lightning.runs.folder import CHECKPOINTS, OUTPUTS, NoRunError, read_overrides


def _overrides() -> list[str]:
    """Return this command's overrides as a run's record holds them, but for `ckpt`."""
    elsewhere = ("-", "ckpt=", "hydra.", "hydra/", "+hydra", "++hydra")
    given = (argument for argument in sys.argv[1:] if "=" in argument or argument.startswith("~"))
    return sorted(argument for argument in given if not argument.startswith(elsewhere))


@functools.cache
def new_run_dir() -> str:
    """Make a folder for this process's run and return it: `outputs/<date>/<time>`, with -2, -3, ... where that is taken.

    Of the processes of one run, the first makes it: the others have the same time, or get it from `hydra.run.dir`.
    """
    first = OUTPUTS / datetime.now().strftime("%Y-%m-%d/%H-%M-%S")
    if os.environ.get("RANK", os.environ.get("LOCAL_RANK", "0")) != "0":
        return str(first)
    for number in itertools.count(1):
        folder = first if number == 1 else first.with_name(f"{first.name}-{number}")
        try:
            folder.parent.mkdir(parents=True, exist_ok=True)
            folder.mkdir()
        except FileExistsError:
            if folder.is_dir():
                continue
        except OSError:
            pass  # Hydra, which makes the folder as well, reports it
        return str(folder)
    raise AssertionError


def run_dir(ckpt: str | None) -> str:
    """Return `outputs/<date>/<time>`; for `ckpt="last"`, the newest one whose command was the same but for `ckpt`.

    For `ckpt="auto"` likewise, and a new one if no earlier run fits.

    Raises:
        FileNotFoundError: if no earlier run fits `ckpt="last"`.
    """
    if ckpt not in ("last", "auto"):
        return new_run_dir()
    for folder in sorted(OUTPUTS.glob("*-*-*/*-*-*"), reverse=True):
        if not (folder / CHECKPOINTS).is_dir():
            continue
        try:
            recorded = read_overrides(folder)
        except NoRunError:
            continue
        if sorted(each for each in recorded if not each.startswith("ckpt=")) == _overrides():
            return str(folder)
    if ckpt == "auto":
        return new_run_dir()
    raise FileNotFoundError(
        f"ckpt=last, but no run below {OUTPUTS}/ was started with the same overrides and has checkpoints; give the run's "
        "folder as hydra.run.dir=FOLDER, or a checkpoint folder as ckpt=FOLDER"
    )


def wandb_offline() -> bool:
    """Return whether W&B is to stay offline: its environment says so, or there is no key to go online with."""
    if os.environ.get("WANDB_MODE"):
        return os.environ["WANDB_MODE"] in ("offline", "dryrun")
    if os.environ.get("WANDB_API_KEY"):
        return False
    try:
        return netrc.netrc().authenticators("api.wandb.ai") is None
    except (OSError, netrc.NetrcParseError):
        return True


def optimizer_bytes(target: str) -> float:
    """Return the bytes that an optimizer, by its `_target_`, keeps for each trained value."""
    # One moment under Muon; two under AdamW, in float32, or in 8 bits with a float32 scale for each 256 of them.
    if "muon" in target.lower():
        return 4.0
    return 2 * (1 + 4 / 256) if "8bit" in target.lower() else 8.0


def _fastest_precision() -> str:
    # Imported when it is needed: PyTorch takes seconds, and `--help` needs none.
    from dsd_lightning.compute.machine import fastest_precision

    return fastest_precision()


def register_resolvers() -> None:
    """Register the resolvers, before Hydra composes a configuration."""
    resolvers: dict[str, Callable[..., Any]] = {
        "run_dir": run_dir,
        "wandb_offline": wandb_offline,
        "fastest_precision": _fastest_precision,
        "half": lambda number: int(number) // 2,
        "optimizer_bytes": optimizer_bytes,
        "group_help": describe_groups,
        "arch_name": lambda target: target.split(".")[-2],
        "base_name": lambda path: path.rstrip("/").split("/")[-1],
    }
    for name, function in resolvers.items():
        OmegaConf.register_new_resolver(name, function, replace=True)
