"""Where a run's files go: a new folder, or, for `ckpt=last` and `auto`, that of the last run of the same command."""

from __future__ import annotations

import netrc
import os
import sys
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

OUTPUTS = Path("outputs")

CONFIG = "config.yaml"
"""The configuration that a run was last started with, as composed. (Hydra replaces its own record on every command.)"""

SUMMARY, METRICS, SAMPLES, FAILURE = "summary.json", "metrics.csv", "samples", "failure.txt"
"""A run's last metrics, all its metrics, its images, and why it failed, if it did."""

MAY_DIFFER = (
    "ckpt",
    "force",
    "group",
    "logger",
    "plan",
    "planner",
    "gradient_checkpointing",
    "trainer.accelerator",
    "trainer.devices",
    "trainer.num_nodes",
    "trainer.strategy",
)
"""Settings, and groups of them, that do not change what a run computes."""


def may_differ(name: str) -> bool:
    """Return whether a setting (a dotted key) has no say in what a run computes."""
    return f"{name}.".startswith(tuple(f"{each}." for each in MAY_DIFFER))


def flattened(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return a nested configuration as dotted keys and their values."""
    flat: dict[str, Any] = {}
    for key, value in config.items():
        name = f"{prefix}{key}"
        flat |= flattened(value, f"{name}.") if isinstance(value, Mapping) and value else {name: value}
    return flat


def _overrides() -> list[str]:
    """Return this command's overrides as Hydra records them in `.hydra/overrides.yaml`, but for `ckpt`."""
    elsewhere = ("-", "ckpt=", "hydra.", "hydra/", "+hydra", "++hydra")
    given = (argument for argument in sys.argv[1:] if "=" in argument or argument.startswith("~"))
    return sorted(argument for argument in given if not argument.startswith(elsewhere))


def run_dir(ckpt: str | None) -> str:
    """Return `outputs/<date>/<time>`; for `ckpt="last"`, the newest one whose command was the same but for `ckpt`.

    For `ckpt="auto"` likewise, and a new one if no earlier run fits.

    Raises:
        FileNotFoundError: if no earlier run fits `ckpt="last"`.
    """
    new = str(OUTPUTS / datetime.now().strftime("%Y-%m-%d/%H-%M-%S"))
    if ckpt not in ("last", "auto"):
        return new
    for folder in sorted(OUTPUTS.glob("*-*-*/*-*-*"), reverse=True):
        saved = folder / ".hydra" / "overrides.yaml"
        if saved.exists() and (folder / "checkpoints").is_dir():
            before = sorted(str(each) for each in OmegaConf.load(saved) if not str(each).startswith("ckpt="))
            if before == _overrides():
                return str(folder)
    if ckpt == "auto":
        return new
    raise FileNotFoundError(
        f"ckpt=last, but no run below {OUTPUTS}/ was started with the same overrides and has checkpoints; give the run's "
        "folder as hydra.run.dir=FOLDER, or a checkpoint folder as ckpt=FOLDER"
    )


def wandb_offline() -> bool:
    """Return whether W&B is to stay offline: it was told so, or has no key to go online with."""
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
    # Imported when it is asked for: PyTorch takes seconds, and `--help` needs none.
    from dsd_lightning.compute.machine import fastest_precision

    return fastest_precision()


def register_resolvers() -> None:
    """Make the functions above known to the configuration, before Hydra composes it."""
    OmegaConf.register_new_resolver("run_dir", run_dir, replace=True)
    OmegaConf.register_new_resolver("wandb_offline", wandb_offline, replace=True)
    OmegaConf.register_new_resolver("fastest_precision", _fastest_precision, replace=True)
    OmegaConf.register_new_resolver("half", lambda number: int(number) // 2, replace=True)
    OmegaConf.register_new_resolver("optimizer_bytes", optimizer_bytes, replace=True)
    OmegaConf.register_new_resolver("arch_name", lambda target: target.split(".")[-2], replace=True)
    OmegaConf.register_new_resolver("base_name", lambda path: path.rstrip("/").split("/")[-1], replace=True)
