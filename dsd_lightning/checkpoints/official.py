"""Loads the officially released weights into the parallel architecture.

Two files, as users download them from primecai/dsd_model: the folder `transformer/`, FLUX's transformer with the
reference's linear layer `c_embedder` beside `x_embedder`; and `pytorch_lora_weights.safetensors`, keys
`transformer.<layer>.lora_A.weight` and `.lora_B.weight`, no alpha, an effective scale of 1.
"""

from __future__ import annotations

import json
import logging
import re
from pathlib import Path
from typing import Any

import torch
from peft.tuners.lora import LoraLayer

from dsd_lightning.architectures.base import Architecture
from dsd_lightning.architectures.parallel import Parallel
from dsd_lightning.checkpoints.lora_files import (
    LORA_FILE,
    PREFIX,
    common_rank,
    linear_layers,
    read_factors,
    require_fit,
)
from dsd_lightning.checkpoints.weight_files import (
    TRANSFORMER_FILE,
    OfficialWeightsError,
    copy_into,
    opened,
    some,
    transformer_files,
)
from dsd_lightning.flux.lora import Lora

__all__ = [
    "LORA_FILE",
    "PREFIX",
    "TRANSFORMER_FILE",
    "OfficialWeightsError",
    "is_official",
    "load_official",
    "load_official_folder",
]

log = logging.getLogger(__name__)

_STRAY = re.compile(r".+\.lora_[AB]\.[^.]+\.weight")
"""Left over in the released transformer from its authors' training; not part of the model."""


def is_official(folder: str | Path) -> bool:
    """Return whether `folder` looks like a download of the official weights: a transformer, factors, or both."""
    folder = Path(folder)
    return (folder / "transformer" / "config.json").is_file() or (folder / LORA_FILE).is_file()


def load_official_folder(architecture: Architecture, folder: str | Path) -> None:
    """Load an official folder into `architecture`, as a starting point of training.

    Factors that are all zero (as a merged export brings along) are left out. Into an architecture without factors the
    file's own are attached; into one that has factors of the same rank on the same layers their values are copied.

    Raises:
        OfficialWeightsError: as `load_official`; also if the architecture is another, or has other factors.
    """
    folder = Path(folder)
    if not isinstance(architecture, Parallel):
        raise OfficialWeightsError(
            f"{folder} holds the official weights, which belong to arch=parallel; this run has arch={architecture.name}"
        )
    transformer = folder / "transformer" if (folder / "transformer").is_dir() else None
    file = folder / LORA_FILE if (folder / LORA_FILE).is_file() else None
    if file is not None and not any(bool(pair["B"].any()) for pair in read_factors(file).values() if "B" in pair):
        log.info("left out %s, whose factors are zero", file)
        file = None
    if transformer is None:
        log.warning("%s has no transformer/: the base keeps its weights, and c_embedder starts at zero", folder)
    if file is not None and architecture.lora is not None:
        load_official(architecture, transformer)
        _fill_factors(architecture, file)
    else:
        load_official(architecture, transformer, file)
    architecture.official_base = transformer is not None and not architecture.train_base


def load_official(
    architecture: Parallel, transformer: str | Path | None = None, lora: str | Path | None = None, scale: float = 1.0
) -> None:
    """Load the official weights into `architecture`.

    Args:
        architecture: built on a transformer of the same configuration; without factors of its own if `lora` is given.
        transformer: the official `transformer/` folder; None keeps the weights that are there.
        lora: the official LoRA file; its factors are attached to exactly the layers it names, and are trainable.
        scale: of the factors' update; it is multiplied into lora_B, so that checkpoints made afterwards hold it.

    Raises:
        OfficialWeightsError: if a file is missing or not in the official layout, if weights are missing or left over, or if
            shapes do not fit. The architecture may be partly loaded then.
    """
    if transformer is not None:
        _load_transformer(architecture, Path(transformer))
    if lora is not None:
        _load_lora(architecture, Path(lora), scale)


# --- The transformer.


def _load_transformer(architecture: Parallel, folder: Path) -> None:
    _check_config(architecture, folder / "config.json")
    files = transformer_files(folder)
    # Beside factors of its own, a layer's weights go by another name.
    missing = {
        name.replace(".base_layer.", "."): value
        for name, value in architecture.transformer.state_dict().items()
        if ".lora_" not in name
    }
    stray, unexpected = 0, []
    for file in files:
        with opened(file) as tensors:
            for key in tensors.keys():  # noqa: SIM118 (a safetensors file is no mapping)
                if _STRAY.fullmatch(key):
                    stray += 1
                elif (place := missing.pop(_ours(key), None)) is None:
                    unexpected.append(key)
                else:
                    copy_into(tensors.get_tensor(key), place, key, file)
    if unexpected:
        raise OfficialWeightsError(
            f"{folder} holds {some(unexpected)}, which the transformer does not have (or has twice)"
        )
    if missing:
        names = [_theirs(name) for name in missing]
        hint = (
            "; is it a plain FLUX transformer? Then name it as base.model.path" if "c_embedder.weight" in names else ""
        )
        raise OfficialWeightsError(f"{folder} lacks {len(names)} of the transformer's weights: {some(names)}{hint}")
    if stray:
        log.info("left out %d stray LoRA tensors of %s", stray, folder)


def _check_config(architecture: Parallel, file: Path) -> None:
    try:
        theirs: dict[str, Any] = json.loads(file.read_text())
    except (OSError, ValueError) as error:
        raise OfficialWeightsError(
            f"{file} cannot be read: {error}; give the official model's folder transformer/"
        ) from error
    ours = architecture.transformer.config
    for key, value in theirs.items():
        if key in ours and not key.startswith("_") and _plain(ours[key]) != _plain(value):
            raise OfficialWeightsError(
                f"{file} says {key}={value}, but the base transformer has {_plain(ours[key])}; choose a base of the same "
                "configuration"
            )


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _ours(name: str) -> str:
    """Return our name of an official layer or weight: both embedders stand in the `x_embedder` slot."""
    return re.sub(r"^([xc]_embedder)(?=\.|$)", r"x_embedder.\1", name)


def _theirs(name: str) -> str:
    return re.sub(r"^x_embedder\.(?=[xc]_embedder\b)", "", name)


# --- The factors.


def _load_lora(architecture: Parallel, file: Path, scale: float) -> None:
    if architecture.lora is not None:
        raise OfficialWeightsError(
            f"{file} brings its own factors: build the architecture without any (arch.lora=null)"
        )
    factors = {_ours(layer): pair for layer, pair in read_factors(file).items()}
    rank = common_rank(factors, file)
    require_fit(factors, linear_layers(architecture.transformer), file)
    # A pattern of full names, for a bare list of them would match by their endings: `proj_out`, the output head, is also
    # how the single blocks' last layers end.
    settings = Lora(rank=rank, targets="|".join(re.escape(name) for name in sorted(factors)))
    settings.attach(architecture.transformer)
    architecture.lora = settings
    for module in architecture.trained_whole():  # peft froze all but the factors
        module.requires_grad_(True)
    with torch.no_grad():
        for name, pair in factors.items():
            layer = architecture.transformer.get_submodule(name)
            for side, value in {"A": pair["A"], "B": scale * pair["B"]}.items():
                copy_into(
                    value, getattr(layer, f"lora_{side}")[settings.adapter_name].weight, f"{name}.lora_{side}", file
                )


def _fill_factors(architecture: Parallel, file: Path) -> None:
    """Copy a file's factors into those that the architecture has; its own scale is divided out."""
    factors = {_ours(layer): pair for layer, pair in read_factors(file).items()}
    mine = {name: layer for name, layer in architecture.transformer.named_modules() if isinstance(layer, LoraLayer)}
    assert architecture.lora is not None
    adapter, rank = architecture.lora.adapter_name, common_rank(factors, file)
    if set(mine) != set(factors) or rank != architecture.lora.rank:
        raise OfficialWeightsError(
            f"{file} has factors of rank {rank} on {len(factors)} layers, and arch.lora has rank {architecture.lora.rank} on "
            f"{len(mine)}: set arch.lora=null to train on from the file's own factors, or give arch.lora the same rank and "
            "targets"
        )
    with torch.no_grad():
        for name, layer in mine.items():
            scale = float(layer.scaling[adapter])
            for side, value in {"A": factors[name]["A"], "B": factors[name]["B"] / scale}.items():
                copy_into(value, getattr(layer, f"lora_{side}")[adapter].weight, f"{name}.lora_{side}", file)
