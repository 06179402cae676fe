"""Converts a trained architecture to plain weights, and to the stock transformer that computes the same.

Names are the official ones: those of diffusers' transformer, with `c_embedder` beside `x_embedder`. Factors are named by
their layer.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from diffusers import FluxTransformer2DModel
from peft.tuners.lora import LoraLayer
from torch import Tensor

from dsd_lightning.architectures.base import Architecture

FP8 = torch.float8_e4m3fn
BESIDE_FP8 = torch.bfloat16
"""What is not stored in eight bits: embedders, norms, biases, factors."""

REFERENCE_EMBEDDER = "c_embedder"

_BLOCK_MATRIX = re.compile(r"(single_)?transformer_blocks\..+\.weight")
_EMBEDDER = re.compile(r"^x_embedder\.(?=[xc]_embedder\b)")


class ExportError(ValueError):
    """A run that a format cannot hold; the message says why, and names formats that can."""


@dataclass(frozen=True)
class Factors:
    """LoRA factors of a layer, float32, with the scale alpha / rank multiplied into `b`: the update is `b @ a`."""

    a: Tensor
    b: Tensor


def official_name(name: str) -> str:
    """Return the official name of one of our transformer's layers or weights: the embedders stand beside each other."""
    return _EMBEDDER.sub("", name)


def factors(architecture: Architecture) -> dict[str, Factors]:
    """Return the LoRA factors by the official name of their layer.

    Those of the reference's own linear layer, which no stock model has, are left out; `weights` adds them up.
    """
    by_layer = {official_name(name): _factors(layer) for name, layer in _layers(architecture)}
    return {name: pair for name, pair in by_layer.items() if name != REFERENCE_EMBEDDER}


def weights(architecture: Architecture, merged: bool, dtype: torch.dtype) -> dict[str, Tensor]:
    """Return the transformer's weights by official name, on the CPU.

    Args:
        architecture: complete, with its trained weights in place.
        merged: add the factors' updates to the weights (in float32); False leaves the factors out.
        dtype: as `stored` describes.
    """
    updates = dict(_layers(architecture))
    result = {}
    for ours, value in architecture.transformer.state_dict().items():
        if ".lora_" in ours:
            continue
        layer, _, last = ours.replace(".base_layer.", ".").rpartition(".")
        name = f"{official_name(layer)}.{last}" if layer else last
        value = value.detach().cpu()
        if last == "weight" and layer in updates and (merged or name == f"{REFERENCE_EMBEDDER}.weight"):
            pair = _factors(updates[layer])
            value = value.float() + (pair.b @ pair.a).cpu()
        result[name] = stored(name, value, dtype)
    return result


def stored(name: str, value: Tensor, dtype: torch.dtype) -> Tensor:
    """Return a weight as it is stored under `dtype`.

    Eight bits (float8_e4m3fn, without a scale of its own) are for the matrices of the blocks, 98% of FLUX; what remains is
    bfloat16 then. Values outside of +-448 are clipped, for the cast would make them NaN.
    """
    if dtype != FP8:
        return value.to(dtype).contiguous()
    if value.ndim == 2 and _BLOCK_MATRIX.fullmatch(name):
        most = torch.finfo(FP8).max
        return value.clamp(-most, most).to(FP8).contiguous()
    return value.to(BESIDE_FP8).contiguous()


def stock_transformer(architecture: Architecture, dtype: torch.dtype) -> FluxTransformer2DModel:
    """Return diffusers' own transformer, on the CPU, with everything trained merged into its weights.

    A reference embedder becomes half of the image embedder's input channels (as in FLUX's depth and canny models): stock
    code feeds it `[noisy | reference]` along the channels and computes the same.

    Raises:
        ExportError: if a trained weight has no place in it.
    """
    if architecture.stock_pipeline is None:
        raise ExportError(
            f"arch={architecture.name} has no stock diffusers pipeline that computes the same: its reference does not enter "
            "through the transformer's input channels"
        )
    state = weights(architecture, merged=True, dtype=dtype)
    config = {key: value for key, value in architecture.transformer.config.items() if not key.startswith("_")}
    # Stated, because its default is the number of input channels, which is doubled here.
    config["out_channels"] = config.get("out_channels") or config["in_channels"]
    if f"{REFERENCE_EMBEDDER}.weight" in state:
        reference = {part: state.pop(f"{REFERENCE_EMBEDDER}.{part}") for part in ("weight", "bias")}
        config["in_channels"] += reference["weight"].shape[1]
        state["x_embedder.weight"] = torch.cat([state["x_embedder.weight"], reference["weight"]], dim=1)
        state["x_embedder.bias"] = state["x_embedder.bias"] + reference["bias"]
    with torch.device("meta"):
        stock = FluxTransformer2DModel.from_config(config)
    missing, unexpected = (sorted(left - right) for left, right in _both_ways(stock.state_dict(), state))
    if missing or unexpected:
        raise ExportError(
            f"arch={architecture.name} does not fit diffusers' FluxTransformer2DModel: {len(unexpected)} weights have no "
            f"place in it (first {unexpected[:3]}), {len(missing)} are missing (first {missing[:3]})"
        )
    stock.load_state_dict(state, assign=True)
    return stock.eval()


def _both_ways(left: Mapping[str, Tensor], right: Mapping[str, Tensor]) -> tuple[tuple[set[str], set[str]], ...]:
    return (set(left), set(right)), (set(right), set(left))


def _layers(architecture: Architecture) -> Iterator[tuple[str, LoraLayer]]:
    """Yield the layers with factors, by our name within the transformer."""
    for name, layer in architecture.transformer.named_modules():
        if isinstance(layer, LoraLayer):
            yield name, layer


def _factors(layer: LoraLayer) -> Factors:
    (adapter,) = layer.lora_A
    a, b = (getattr(layer, f"lora_{side}")[adapter].weight.detach().float() for side in "AB")
    return Factors(a, b * float(layer.scaling[adapter]))
