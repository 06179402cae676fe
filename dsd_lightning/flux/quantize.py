"""Stores frozen linear layers in 8 or 4 bits, and computes with them, in sampling and in training.

Weights alone are small; products are computed in the input's dtype. A layer's weight is dequantised for each use, again in
the backward pass, and freed: autograd keeps the quantised one. (torchao's own layers leave the dequantised one to
autograd, which then holds the full base until the backward pass is over; those of bitsandbytes compute without gradients on
some CPUs.)
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

NF4_BLOCK = 64
"""Values that share a scale (Dettmers et al., arXiv 2305.14314)."""

LIBRARIES = {"int8": "torchao", "fp8": "torchao", "nf4": "bitsandbytes"}
"""Library by the kind of numbers: integers and floats (e4m3) of 8 bits with a float32 scale a row, and normal floats of
4 bits with a float32 scale for each 64."""


class QuantizationError(ValueError):
    """Quantisation that is unknown or not available here; the message says what to install or choose."""


def stored_bytes(kind: str, rows: int, columns: int) -> int:
    """Return the bytes of a weight [rows, columns] of this kind, its scales among them."""
    values = rows * columns
    return values // 2 + 4 * -(-values // NF4_BLOCK) if kind == "nf4" else values + 4 * rows


def linear_layers(block: nn.Module) -> Iterator[tuple[nn.Module, str, nn.Linear]]:
    """Yield (parent, name, layer) of the frozen linear layers within `block`."""
    for parent in block.modules():
        for name, layer in parent.named_children():
            if isinstance(layer, nn.Linear) and not layer.weight.requires_grad:
                yield parent, name, layer


def quantize_(blocks: Iterable[nn.Module], kind: str) -> None:
    """Store the weights of all frozen linear layers of `blocks` in 8 or 4 bits, in place; those on meta stay there.

    Raises:
        QuantizationError: an unknown kind, or a library that is not installed.
    """
    require_known(kind)
    for block in blocks:
        for parent, name, layer in list(linear_layers(block)):
            weight = layer.weight.detach()
            codes, scale = (
                _like_stored(weight, kind) if weight.is_meta else _QUANTIZE[kind](import_library(kind), weight)
            )
            setattr(parent, name, QuantizedLinear(kind, codes, scale, layer.bias))


def require_known(kind: str) -> None:
    """Refuse an unknown kind of numbers.

    Raises:
        QuantizationError: naming those that are.
    """
    if kind not in LIBRARIES:
        raise QuantizationError(f"quantize={kind!r} is unknown; choose one of {', '.join(LIBRARIES)}, or leave it out")


def import_library(kind: str) -> Any:
    """Return the module that stores weights as this kind of numbers.

    Raises:
        QuantizationError: an unknown kind, or a library that is not installed.
    """
    require_known(kind)
    library = LIBRARIES[kind]
    try:
        return importlib.import_module("torchao.quantization" if library == "torchao" else library)
    except ImportError as error:
        raise QuantizationError(
            f"quantize={kind} needs {library}, which is not installed: pip install {library} (this project's extra "
            "[quantize] brings it)"
        ) from error


class QuantizedLinear(nn.Module):
    """A frozen linear layer whose weight is stored in 8 or 4 bits.

    Args:
        kind: of the numbers, a key of `LIBRARIES`.
        codes: int8 [out, in]; the bytes of floats [out, in]; or two normal floats a byte [out, in / 2].
        scale: float32 [out, 1]; for normal floats, [out * in / 64].
        bias: [out], frozen, or None.
    """

    def __init__(self, kind: str, codes: Tensor, scale: Tensor, bias: nn.Parameter | None) -> None:
        super().__init__()
        self.kind = kind
        # Parameters, though nothing learns: DDP sends buffers to all devices in every step.
        self.codes, self.scale = (nn.Parameter(each, requires_grad=False) for each in (codes, scale))
        self.bias = bias
        self.out_features = codes.shape[0]
        self.in_features = codes.shape[1] * (2 if kind == "nf4" else 1)

    def extra_repr(self) -> str:
        return f"{self.in_features}, {self.out_features}, bias={self.bias is not None}, {self.kind}"

    def dequantize(self, dtype: torch.dtype) -> Float[Tensor, "out in"]:
        """Return the weight in `dtype`."""
        return dequantize(self.codes, self.scale, self.kind, dtype)

    def forward(self, input: Float[Tensor, "*b in"]) -> Float[Tensor, "*b out"]:
        """Return `input` transformed; in autocast's dtype where it is on."""
        device = input.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else input.dtype
        bias = None if self.bias is None else self.bias.to(dtype)
        output: Tensor = _Product.apply(input.to(dtype), self.codes, self.scale, bias, self.kind)
        return output


def dequantize(codes: Tensor, scale: Tensor, kind: str, dtype: torch.dtype) -> Float[Tensor, "out in"]:
    """Return the weight that `codes` and `scale` store, in `dtype`."""
    return _DEQUANTIZE[kind](codes, scale, dtype)


class _Product(torch.autograd.Function):
    """`F.linear` with a weight that is dequantised for it, and again in the backward pass; only the input has a gradient."""

    @staticmethod
    def forward(ctx: Any, input: Tensor, codes: Tensor, scale: Tensor, bias: Tensor | None, kind: str) -> Tensor:
        ctx.save_for_backward(codes, scale)
        ctx.kind = kind
        return F.linear(input, dequantize(codes, scale, kind, input.dtype), bias)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None, None]:
        codes, scale = ctx.saved_tensors
        return gradient @ dequantize(codes, scale, ctx.kind, gradient.dtype), None, None, None, None


# --- The kinds of numbers.


def _rows_to_int8(torchao: Any, weight: Tensor) -> tuple[Tensor, Tensor]:
    stored = _by_torchao(torchao, weight, torchao.Int8WeightOnlyConfig(set_inductor_config=False))
    return stored.qdata, stored.scale.float()


def _rows_to_fp8(torchao: Any, weight: Tensor) -> tuple[Tensor, Tensor]:
    stored = _by_torchao(torchao, weight, torchao.Float8WeightOnlyConfig(set_inductor_config=False))
    # As bytes, which no change of a module's dtype converts, and which every backend sends.
    return stored.qdata.view(torch.uint8), stored.scale.float()


def _by_torchao(torchao: Any, weight: Tensor, config: Any) -> Any:
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta")
    layer.weight = nn.Parameter(weight, requires_grad=False)
    torchao.quantize_(layer, config)
    return layer.weight


def _blocks_to_nf4(bitsandbytes: Any, weight: Tensor) -> tuple[Tensor, Tensor]:
    codes, state = bitsandbytes.functional.quantize_4bit(weight.contiguous(), blocksize=NF4_BLOCK, quant_type="nf4")
    return codes.view(weight.shape[0], -1), state.absmax


def _from_int8(codes: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
    # Codes are exact in every dtype, and in place the product is rounded once.
    return codes.to(dtype).mul_(scale)


def _from_fp8(codes: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
    return codes.view(torch.float8_e4m3fn).to(dtype).mul_(scale)


def _from_nf4(codes: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
    shape = [codes.shape[0], 2 * codes.shape[1]]
    weight: Tensor = torch.ops.bitsandbytes.dequantize_4bit(codes.view(-1, 1), scale, NF4_BLOCK, "nf4", shape, dtype)
    return weight


_QUANTIZE: dict[str, Callable[[Any, Tensor], tuple[Tensor, Tensor]]] = {
    "int8": _rows_to_int8,
    "fp8": _rows_to_fp8,
    "nf4": _blocks_to_nf4,
}

_DEQUANTIZE: dict[str, Callable[[Tensor, Tensor, torch.dtype], Tensor]] = {
    "int8": _from_int8,
    "fp8": _from_fp8,
    "nf4": _from_nf4,
}


def _like_stored(weight: Tensor, kind: str) -> tuple[Tensor, Tensor]:
    """Return codes and scales of `weight` without contents."""
    rows, columns = weight.shape
    if kind == "nf4":
        blocks = -(-rows * columns // NF4_BLOCK)
        return weight.new_empty(rows, columns // 2, dtype=torch.uint8), weight.new_empty(blocks, dtype=torch.float32)
    codes = torch.int8 if kind == "int8" else torch.uint8
    return weight.new_empty(rows, columns, dtype=codes), weight.new_empty(rows, 1, dtype=torch.float32)
