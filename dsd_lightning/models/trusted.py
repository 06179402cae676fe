"""Builds objects from a configuration that was read back from a folder, and refuses targets that such a folder never needs.

Hydra's `instantiate` calls whatever `_target_` names, at any depth, so that a configuration from elsewhere could run code. Its
own blocklist is no boundary (hydra issues 3258, 3409): what may be built is listed here instead.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from importlib import import_module
from typing import Any

from hydra.utils import instantiate
from omegaconf import OmegaConf

from dsd_lightning.architectures.base import Architecture

TARGETS = frozenset(
    {
        "dsd_lightning.flux.base.FluxBase",
        "dsd_lightning.flux.image_encoder.load_image_encoder",
        "dsd_lightning.flux.lora.Lora",
        "dsd_lightning.models.build.shift_of_base",
        "dsd_lightning.rectified_flow.FixedShift",
        "dsd_lightning.rectified_flow.NoShift",
        "dsd_lightning.rectified_flow.ResolutionShift",
    }
)
"""What a run, an export or a saved pipeline may name beside the classes in `dsd_lightning.architectures`."""

_ARCHITECTURE = re.compile(r"dsd_lightning\.architectures\.\w+\.\w+")


class UntrustedTargetError(ValueError):
    """A configuration names something to be called that is not listed; the message says where and what."""


def build_trusted(config: Any, place: object) -> Any:
    """Return what `hydra.utils.instantiate(config)` builds, after every `_target_` in it was found to be listed.

    Args:
        config: mapping or OmegaConf node; interpolations are resolved before the check.
        place: file that it comes from, for the message.

    Raises:
        UntrustedTargetError: for the first `_target_` that is not listed; nothing was imported or called for it.
    """
    plain = OmegaConf.to_container(config, resolve=True) if OmegaConf.is_config(config) else config
    for path, target in _targets(plain, ()):
        if not is_trusted(target):
            raise UntrustedTargetError(
                f"{place}: {'.'.join((*path, '_target_'))}={target!r} is nothing that a saved model may call, and nothing was "
                "loaded; use this folder only if you know where it comes from, and have it saved again by this project"
            )
    return instantiate(plain)


def is_trusted(target: Any) -> bool:
    """Return whether a configuration from a folder may name `target`: it is in `TARGETS`, or one of our architectures."""
    if isinstance(target, str) and target in TARGETS:
        return True
    if not isinstance(target, str) or not _ARCHITECTURE.fullmatch(target):
        return False
    module, _, name = target.rpartition(".")
    try:
        named = getattr(import_module(module), name, None)
    except ImportError:
        return False
    return isinstance(named, type) and issubclass(named, Architecture)


def _targets(node: Any, path: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Yield the place and value of every `_target_` at any depth."""
    if isinstance(node, Mapping):
        if "_target_" in node:
            yield path, node["_target_"]
        for key, value in node.items():
            yield from _targets(value, (*path, str(key)))
    elif isinstance(node, Sequence) and not isinstance(node, (str, bytes)):
        for index, value in enumerate(node):
            yield from _targets(value, (*path, str(index)))
