"""Trained weights, apart from the base: saves and loads them, and refuses those that do not fit.

A trained adapter is a folder with `adapter.safetensors` (the trained parameters by name) and `adapter.json` (the header:
which architecture and which settings they belong to). A run's checkpoints are such folders too, with more beside.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from dsd_lightning.architectures.base import Architecture
from dsd_lightning.checkpoints import sharded
from dsd_lightning.compute import processes
from dsd_lightning.compute.dtensors import sharded_like
from dsd_lightning.compute.finite import require_finite
from dsd_lightning.files import atomic, folders

log = logging.getLogger(__name__)

WEIGHTS, EMA_WEIGHTS, HEADER = "adapter.safetensors", "ema.safetensors", "adapter.json"

OFFICIAL_BASE = "official_base"
"""Key of a header: whether official weights had taken the place of the base's own, below what was trained."""

_SHAPE_KEYS = (
    "in_channels",
    "out_channels",
    "num_layers",
    "num_single_layers",
    "num_attention_heads",
    "attention_head_dim",
    "joint_attention_dim",
    "pooled_projection_dim",
    "guidance_embeds",
)
"""The transformer's settings that its parameters' shapes depend on."""


class AdapterMismatchError(ValueError):
    """Trained weights of another architecture, rank or base; the message names both sides and the remedy."""


def header_of(architecture: Architecture) -> dict[str, Any]:
    """Return what trained weights of `architecture` must be loaded into: plain types only.

    Keys: `architecture`, `settings` (the architecture's own), `frames`, `train_base`, `lora` (rank, alpha, targets; or
    None), `official_base`, `transformer` (the settings that shapes depend on) and `parameters` (number of trained values).
    """
    lora = architecture.lora
    config = architecture.transformer.config
    return {
        "architecture": architecture.name,
        "settings": dict(architecture.settings()),
        "frames": list(architecture.frames),
        "train_base": bool(architecture.train_base),
        "lora": None
        if lora is None
        else {
            "rank": int(lora.rank),
            "alpha": float(lora.rank if lora.alpha is None else lora.alpha),
            "targets": str(lora.targets),
        },
        OFFICIAL_BASE: bool(architecture.official_base),
        "transformer": {key: config[key] for key in _SHAPE_KEYS if key in config},
        "parameters": sum(parameter.numel() for _, parameter in architecture.trainable()),
    }


def check_header(header: Mapping[str, Any], architecture: Architecture) -> None:
    """Refuse weights that were trained with other settings than `architecture` has.

    The patterns of the LoRA targets may differ as long as they match the same layers.

    Raises:
        AdapterMismatchError: naming the first setting that differs, its value on both sides, and the remedy.
    """
    if not header:
        raise AdapterMismatchError(
            f"the checkpoint does not say which architecture it belongs to (no {HEADER}); give a folder that this "
            "project's training or save_adapter wrote"
        )
    mine = header_of(architecture)
    theirs, ours = _settings(header), _settings(mine)
    keys = [key for key in ours if key != "arch.lora.targets"]
    if header.get("parameters") != mine["parameters"]:
        keys += ["arch.lora.targets", "the number of trained values"]
        theirs["the number of trained values"], ours["the number of trained values"] = (
            header.get("parameters"),
            mine["parameters"],
        )
    for key in keys:
        if theirs.get(key) != ours.get(key):
            raise AdapterMismatchError(
                f"the checkpoint was made with {key}={_show(theirs.get(key))}, this run has {_show(ours.get(key))}: "
                + _remedy(key, theirs.get(key))
            )


def load_trained(architecture: Architecture, weights: Mapping[str, Tensor]) -> None:
    """Copy `weights` into the trained parameters of `architecture`.

    Raises:
        AdapterMismatchError: if names or shapes differ, naming the first ones on both sides.
        NonFiniteError: weights with NaN or infinite values.
    """
    mine = dict(architecture.trainable())
    missing, unexpected = sorted(set(mine) - set(weights)), sorted(set(weights) - set(mine))
    if missing or unexpected:
        raise AdapterMismatchError(
            f"the weights do not fit arch={architecture.name}: {len(missing)} missing (first {missing[:3]}), "
            f"{len(unexpected)} unexpected (first {unexpected[:3]}); use the arch and lora settings they were trained with"
        )
    for name, parameter in mine.items():
        if parameter.shape != weights[name].shape:
            raise AdapterMismatchError(
                f"{name} is {tuple(weights[name].shape)} in the weights and {tuple(parameter.shape)} here; "
                "was another arch.lora.rank trained?"
            )

    def check() -> None:
        require_finite(weights, "the trained weights", "their training diverged: take an earlier checkpoint")

    if any(isinstance(value, DTensor) for value in weights.values()):
        processes.together(check)  # each device has a part of its own
    else:
        check()
    with torch.no_grad():
        for name, parameter in mine.items():
            parameter.copy_(sharded_like(weights[name], parameter))


def save_adapter(
    folder: str | Path,
    architecture: Architecture,
    weights: Mapping[str, Tensor] | None = None,
    dtype: torch.dtype = torch.float32,
) -> None:
    """Write a trained adapter; other files in `folder` (a model card) stay as they are.

    Each file is written atomically. The header comes last and holds the weights' sha256, so that an
    interrupted save is noticed by `load_adapter`.

    Args:
        folder: made if it does not exist.
        architecture: whose header is written.
        weights: by the names of `architecture.trainable()`; those of the architecture itself if None. Give the EMA
            weights to publish them.
        dtype: of the stored values.
    """
    weights = dict(architecture.trainable()) if weights is None else weights
    write_adapter(folder, header_of(architecture), weights, dtype)


def write_adapter(
    folder: str | Path, header: Mapping[str, Any], weights: Mapping[str, Tensor], dtype: torch.dtype
) -> None:
    """Write an adapter folder from a header and weights, as `save_adapter` describes."""
    folder = Path(folder)
    stored = {name: value.detach().to("cpu", dtype).contiguous() for name, value in weights.items()}
    with atomic.replacing(folder / WEIGHTS) as temporary:
        folders.write_tensors(temporary, stored)
        facts = folders.describe(temporary)
    atomic.write_json(folder / HEADER, dict(header) | {"weights": facts})


def read_adapter(folder: str | Path, ema: bool = True) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Return (header, weights) of a trained adapter or of a run's checkpoint, verified, on the CPU.

    Args:
        folder: written by `save_adapter`, or one `step_...` folder of a run.
        ema: prefer the EMA weights where the folder has both.

    Raises:
        FileNotFoundError: if the folder is no adapter, naming what is missing.
        DamagedError: if a file is not as it was written, naming it.
    """
    folder = Path(folder)
    header = read_header(folder)
    files = (ema and sharded.files_of(folder, EMA_WEIGHTS)) or sharded.files_of(folder, WEIGHTS) or [folder / WEIGHTS]
    if (folder / folders.MANIFEST).is_file():
        folders.verify(folder, only=(HEADER, *(file.name for file in files)))
    elif "weights" in header:
        folders.verify_file(files[0], header["weights"])
    return header, sharded.read(files)


def has_ema(folder: str | Path) -> bool:
    """Return whether a checkpoint holds EMA weights beside the last ones."""
    return bool(sharded.files_of(Path(folder), EMA_WEIGHTS))


def read_header(folder: str | Path) -> dict[str, Any]:
    """Return the header of a trained adapter or of a run's checkpoint, not verified.

    Raises:
        FileNotFoundError: if the folder is neither.
        DamagedError: if the header is no JSON object.
    """
    file = Path(folder) / HEADER
    if not file.is_file():
        raise FileNotFoundError(
            f"{folder} is no trained adapter: it has no {HEADER}; give a folder with {WEIGHTS} and {HEADER}, such as "
            "a run's checkpoints/step_..."
        )
    return folders.read_json(file)


def load_adapter(folder: str | Path, architecture: Architecture, ema: bool = True) -> dict[str, Any]:
    """Load a trained adapter into `architecture` and return its header. `folder` and `ema` are those of `read_adapter`.

    Raises:
        AdapterMismatchError: if it belongs to another architecture, rank or base.
    """
    header, weights = read_adapter(folder, ema)
    try:
        check_header(header, architecture)
        load_trained(architecture, weights)
    except AdapterMismatchError as error:
        raise AdapterMismatchError(f"{folder}: {error}") from error
    return header


def _settings(header: Mapping[str, Any]) -> dict[str, Any]:
    settings: dict[str, Any] = {"arch": header.get("architecture"), "train_base": header.get("train_base")}
    settings |= {f"arch.{key}": value for key, value in (header.get("settings") or {}).items()}
    lora = header.get("lora")
    settings["arch.lora"] = None if lora is None else "given"
    if lora is not None:
        settings |= {f"arch.lora.{key}": value for key, value in lora.items()}
    settings |= {f"transformer {key}": value for key, value in (header.get("transformer") or {}).items()}
    settings["frames"] = list(header.get("frames") or ())
    settings[OFFICIAL_BASE] = bool(header.get(OFFICIAL_BASE, False))
    return settings


def _show(value: Any) -> str:
    if value is None:
        return "null"
    return f"{value:g}" if isinstance(value, float) else str(value).lower() if isinstance(value, bool) else str(value)


def _remedy(key: str, value: Any) -> str:
    if key.startswith("transformer "):
        return "it belongs to another base model; choose that base, or train from the start (without ckpt)"
    if key == OFFICIAL_BASE:
        return (
            "train it on with ckpt and the init_from=FOLDER of the official weights that it has, or start from its "
            "export of --format official"
            if value
            else "leave out the official weights that this run starts from (init_from)"
        )
    if key in ("frames", "the number of trained values"):
        return "use the arch and lora settings it was trained with, or train from the start (without ckpt)"
    if key == "arch.lora" and value == "given":
        return "use the lora settings it was trained with, or train from the start (without ckpt)"
    if key.endswith(".fingerprint"):
        return f"use the {key.split('.')[-2]} it was trained with, or train from the start (without ckpt)"
    name = "arch.train_base" if key == "train_base" else key
    return f"set {name}={_show(value)}, or train from the start (without ckpt)"
