"""Reads LoRA files in diffusers' key style, and adds their updates to a transformer's weights."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn

from dsd_lightning.checkpoints.weight_files import OfficialWeightsError, opened, require_finite, some

LORA_FILE = "pytorch_lora_weights.safetensors"
"""Name under which LoRA factors are released."""

PREFIX = "transformer."
"""How every key of a LoRA file begins."""

_FACTOR = re.compile(r"(?P<layer>.+)\.lora_(?P<side>[AB])\.weight")

Factors = dict[str, dict[str, Tensor]]
"""The factors "A" [rank, in] and "B" [out, rank] by the name of their layer."""


@dataclass(frozen=True)
class LoraFile:
    """A LoRA file, and the weight that its update is multiplied by."""

    path: Path
    weight: float = 1.0


def lora_in(folder: Path) -> Path:
    """Return the LoRA file in a folder: the one of the released name, or the only .safetensors file.

    Raises:
        OfficialWeightsError: there is none, or several and none of that name.
    """
    if (folder / LORA_FILE).is_file():
        return folder / LORA_FILE
    files = sorted(folder.glob("*.safetensors"))
    if len(files) != 1:
        holds = f"several: {some(file.name for file in files)}" if files else "none"
        raise OfficialWeightsError(
            f"{folder}: a folder must hold {LORA_FILE} or one .safetensors file, and holds {holds}"
        )
    return files[0]


def read_factors(file: Path) -> Factors:
    """Return the factors in a file by the file's names of layers, without their prefix.

    Raises:
        OfficialWeightsError: no such file; keys of another style, alpha keys, one side alone, or values that are not finite.
    """
    if not file.is_file():
        raise OfficialWeightsError(f"{file} is no file; give the released {LORA_FILE}")
    with opened(file) as tensors:
        keys = list(tensors.keys())
        if alphas := [key for key in keys if key.endswith(".alpha")]:
            raise OfficialWeightsError(
                f"{file} holds {some(alphas)}: the official layout has no alpha; multiply each layer's lora_B by "
                "alpha / rank and leave the alpha keys out"
            )
        if foreign := [key for key in keys if not key.startswith(PREFIX)]:
            raise OfficialWeightsError(
                f"{file} holds {some(foreign)}: every key must begin with {PREFIX!r}, or the official loader would "
                "silently load nothing; rename them"
            )
        factors: Factors = {}
        for key in keys:
            match = _FACTOR.fullmatch(key.removeprefix(PREFIX))
            if match is None:
                raise OfficialWeightsError(
                    f"{file} holds {key!r}; the official layout has only {PREFIX}<layer>.lora_A.weight and .lora_B.weight"
                )
            value = tensors.get_tensor(key)
            require_finite(value, key, file)
            factors.setdefault(match["layer"], {})[match["side"]] = value
    if half := sorted(layer for layer, pair in factors.items() if len(pair) != 2):
        raise OfficialWeightsError(f"{file} has only one of lora_A and lora_B for {some(half)}")
    return factors


def common_rank(factors: Mapping[str, Mapping[str, Tensor]], file: Path) -> int:
    """Return the rank of all factors of a file.

    Raises:
        OfficialWeightsError: there are several, or none.
    """
    ranks = {layer: {pair["A"].shape[0], pair["B"].shape[1]} for layer, pair in factors.items()}
    distinct = set().union(*ranks.values())
    if len(distinct) != 1:
        examples = ", ".join(f"{sorted(each)} in {layer}" for layer, each in list(ranks.items())[:3])
        raise OfficialWeightsError(
            f"{file} must hold factors of one rank, and holds {sorted(distinct)} ({examples or 'none'})"
        )
    return int(distinct.pop())


def require_fit(factors: Mapping[str, Mapping[str, Tensor]], layers: Mapping[str, nn.Linear], file: Path) -> None:
    """Refuse factors of layers that a transformer does not have, or of other sizes.

    Raises:
        OfficialWeightsError: naming file and layer.
    """
    if unknown := sorted(set(factors) - set(layers)):
        raise OfficialWeightsError(f"{file} has factors for {some(unknown)}, which the transformer does not have")
    for name, pair in factors.items():
        theirs, ours = (pair["B"].shape[0], pair["A"].shape[1]), tuple(layers[name].weight.shape)
        if theirs != ours:
            raise OfficialWeightsError(f"{file}: the factors of {name!r} make {theirs}, but the layer has {ours}")


def linear_layers(transformer: nn.Module) -> dict[str, nn.Linear]:
    """Return the linear layers by name; of a layer with factors its base, under the layer's own name."""
    layers = {}
    for name, layer in transformer.named_modules():
        inner = layer.get_base_layer() if isinstance(layer, LoraLayer) else layer
        if isinstance(inner, nn.Linear) and not name.endswith(".base_layer") and ".lora_" not in name:
            layers[name] = inner
    return layers


@torch.no_grad()
def add_updates(transformer: nn.Module, file: LoraFile) -> None:
    """Add a file's updates, times its weight, to the weights of the layers that it names; the sum is formed in float32.

    Raises:
        OfficialWeightsError: the file cannot be read or does not fit; nothing was added then.
    """
    layers = linear_layers(transformer)
    factors = {our_name(name, layers): pair for name, pair in read_factors(file.path).items()}
    require_fit(factors, layers, file.path)
    for name, pair in factors.items():
        weight = layers[name].weight
        update = file.weight * (pair["B"].float() @ pair["A"].float()).to(weight.device)
        weight.copy_(weight.float() + update)


def our_name(name: str, layers: Mapping[str, nn.Linear]) -> str:
    """Return our name of a layer: beside a reference's embedder, both stand in the `x_embedder` slot."""
    slot = f"x_embedder.{name}"
    return slot if name in ("x_embedder", "c_embedder") and slot in layers else name
