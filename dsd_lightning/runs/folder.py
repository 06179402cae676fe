"""The run folder: names of its files, and the one record of the configuration, read by every command that uses a run."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from dsd_lightning.files.atomic import write_text

OUTPUTS = Path("outputs")
"""Where runs go that are given no folder: `outputs/<date>/<time>`."""

CONFIG = "config.yaml"
"""The record: the configuration that the run was last started with, resolved, and the overrides of that command."""

SUMMARY, METRICS, SAMPLES, CHECKPOINTS, FAILURE = (
    "summary.json",
    "metrics.csv",
    "samples",
    "checkpoints",
    "failure.txt",
)
"""A run's last metrics, all its metrics, its images, its checkpoints, and why it failed, if it did."""

HERE = "."
"""What the run's own folder is called in the record, so that a run that is moved stays the same run."""

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

_OVERRIDES = "overrides"


class NoRunError(FileNotFoundError):
    """A folder that is no run's, or has no usable checkpoint; the message says what is missing."""


def plain_config(config: DictConfig, run_dir: Path) -> dict[str, Any]:
    """Return a composed configuration as the record holds it: resolved, plain types, without Hydra's own settings."""
    resolved = OmegaConf.to_container(
        OmegaConf.masked_copy(config, [str(key) for key in config if key != "hydra"]), resolve=True
    )
    plain: dict[str, Any] = _relative(resolved, (str(run_dir), str(run_dir.absolute())))
    return plain


def write_config(config: DictConfig, run_dir: Path, overrides: Iterable[str] = ()) -> None:
    """Write the record of a run that is about to train: configuration and overrides, atomically."""
    record = {_OVERRIDES: [str(each) for each in overrides], **plain_config(config, run_dir)}
    write_text(run_dir / CONFIG, OmegaConf.to_yaml(OmegaConf.create(record)))


def read_config(run_dir: Path) -> DictConfig:
    """Return the configuration of the run in `run_dir`, or of an export of it; no resolver is needed.

    Raises:
        NoRunError: there is no record, or it cannot be read.
    """
    record = _read(run_dir)
    record.pop(_OVERRIDES, None)
    return record


def read_overrides(run_dir: Path) -> list[str]:
    """Return the overrides of the command that last started the run in `run_dir`.

    Raises:
        NoRunError: as `read_config`.
    """
    return [str(each) for each in _read(run_dir).get(_OVERRIDES, ())]


def _read(run_dir: Path) -> DictConfig:
    path = run_dir / CONFIG
    if not path.is_file():
        raise NoRunError(f"{run_dir} is no run folder: it has no {CONFIG}; give {OUTPUTS}/<date>/<time> of a training")
    try:
        record = OmegaConf.load(path)
    except (OSError, UnicodeDecodeError, YAMLError, OmegaConfBaseException) as error:
        raise NoRunError(f"{path} cannot be read: {error}") from error
    if not isinstance(record, DictConfig):
        raise NoRunError(f"{path} cannot be read: it holds no settings")
    return record


def _relative(value: Any, folders: Sequence[str]) -> Any:
    """Return nested values with the run's own folder, by any of its names, replaced by `HERE`."""
    if isinstance(value, dict):
        return {str(key): _relative(item, folders) for key, item in value.items()}
    if isinstance(value, list):
        return [_relative(item, folders) for item in value]
    for folder in folders if isinstance(value, str) else ():
        if f"{value}/".startswith(f"{folder}/"):
            return HERE + value.removeprefix(folder)
    return value


def flattened(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return a nested configuration as dotted keys and their values."""
    flat: dict[str, Any] = {}
    for key, value in config.items():
        name = f"{prefix}{key}"
        flat |= flattened(value, f"{name}.") if isinstance(value, Mapping) and value else {name: value}
    return flat


def may_differ(name: str) -> bool:
    """Return whether a setting (a dotted key) has no say in what a run computes."""
    return f"{name}.".startswith(tuple(f"{each}." for each in MAY_DIFFER))
