"""A frozen linear layer and its LoRA factors as one operation, which keeps little for the backward pass."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from peft.tuners.lora.layer import Linear as PeftLinear
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from dsd_lightning.flux.quantize import QuantizedLinear, dequantize


class FusedLoraLinear(PeftLinear):
    """peft's LoRA layer; with one plain adapter on a frozen base layer, the sum is computed in place.

    peft casts a bfloat16 input up to float32 factors, autocast casts it down again, and autograd keeps both; the factors'
    lower-precision copies are kept from forward to backward, and gradients of both branches live at once. Here products
    are in the input's dtype (autocast's, where it is on), the float32 factors are cast again in the backward pass, and the
    factors' branch is added to the layer's own output and gradient in place. Kept are the input and its rank-r product.

    Whatever else peft can do (dropout, several or merged adapters, variants) is peft's own code. Layers of this class come
    from `fuse_`, by a change of class: names, state and merging are peft's.
    """

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Return `x` [..., in] transformed to [..., out]: (W + scaling B A) x + bias."""
        adapter = self._one_plain_adapter()
        if adapter is None or args or kwargs:
            output: Tensor = super().forward(x, *args, **kwargs)
            return output
        if torch.is_autocast_enabled(x.device.type):
            x = x.to(torch.get_autocast_dtype(x.device.type))
        base = self.base_layer
        stored = (base.codes, base.scale, base.kind) if isinstance(base, QuantizedLinear) else (base.weight, None, None)
        factors = (self.lora_A[adapter].weight, self.lora_B[adapter].weight)
        fused: Tensor = _LinearWithFactors.apply(x, *stored, base.bias, *factors, self.scaling[adapter])
        return fused

    def _one_plain_adapter(self) -> str | None:
        """Return the one active adapter's name, if nothing but its factors is added to a frozen layer."""
        if self.disable_adapters or self.merged:
            return None
        active = [name for name in self.active_adapters if name in self.lora_A]
        if len(active) != 1 or active[0] in self.lora_variant:
            return None
        base, (name,) = self.base_layer, active
        frozen = isinstance(base, QuantizedLinear) or (type(base) is nn.Linear and not base.weight.requires_grad)
        plain = isinstance(self.lora_dropout[name], nn.Identity) and self.lora_B[name].bias is None
        return name if frozen and plain else None


def fuse_(transformer: nn.Module) -> None:
    """Compute the LoRA layers of `transformer` as `FusedLoraLinear`, in place."""
    for layer in transformer.modules():
        if type(layer) is PeftLinear:
            layer.__class__ = FusedLoraLinear


class _LinearWithFactors(torch.autograd.Function):
    """x -> W x + bias + scaling B A x, with gradients for x, A and B."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        scale: Tensor | None,
        kind: str | None,
        bias: Tensor | None,
        down: Tensor,
        up: Tensor,
        scaling: float,
    ) -> Tensor:
        inputs = x.reshape(-1, x.shape[-1])
        hidden = inputs @ down.to(x.dtype).t()
        output = F.linear(inputs, _weight(weight, scale, kind, x.dtype), None if bias is None else bias.to(x.dtype))
        output.addmm_(hidden, up.to(x.dtype).t(), alpha=scaling)
        ctx.save_for_backward(x, hidden, weight, scale, down, up)
        ctx.kind, ctx.scaling = kind, scaling
        return output.view(*x.shape[:-1], output.shape[-1])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, hidden, weight, scale, down, up = ctx.saved_tensors
        outputs = gradient.reshape(-1, gradient.shape[-1])
        of_hidden = (outputs @ up.to(gradient.dtype)).mul_(ctx.scaling)
        of_x = of_down = of_up = None
        if ctx.needs_input_grad[6]:
            of_up = (outputs.t() @ hidden).to(up.dtype).mul_(ctx.scaling)
        if ctx.needs_input_grad[5]:
            of_down = (of_hidden.t() @ x.reshape(-1, x.shape[-1])).to(down.dtype)
        shape = x.shape
        # The input is as large as its gradient: let it go first, unless the graph is used again. Compiled code does so itself.
        del x, hidden
        if not torch.compiler.is_compiling():
            ctx.maybe_clear_saved_tensors()
        if ctx.needs_input_grad[0]:
            of_x = outputs @ _weight(weight, scale, ctx.kind, gradient.dtype)
            of_x.addmm_(of_hidden, down.to(gradient.dtype))
            of_x = of_x.view(shape)
        return of_x, None, None, None, None, of_down, of_up, None


def _weight(weight: Tensor, scale: Tensor | None, kind: str | None, dtype: torch.dtype) -> Tensor:
    if kind is None:
        return weight.to(dtype)
    assert scale is not None
    return dequantize(weight, scale, kind, dtype)
