"""Normalisation layers that answer in the dtype of their input under autocast, and keep no float32 copy of it."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable


def keep_dtype_(transformer: nn.Module) -> None:
    """Have the layer and RMS norms of `transformer` answer in their input's dtype, in place, by a change of class.

    CUDA's autocast computes `layer_norm` and `rms_norm` in float32 and answers in it, so that the modulation behind it is
    float32 too and autograd keeps copies of twice the size. The kernels accumulate in float32 whatever their input is, and
    the stock pipeline runs them on bfloat16.
    """
    for module in transformer.modules():
        module.__class__ = LAYER_CLASSES.get(type(module), type(module))


class _LayerNorm(nn.LayerNorm):
    def forward(self, input: Tensor) -> Tensor:
        with torch.autocast(input.device.type, enabled=False):
            return super().forward(input)


class _RMSNorm(nn.RMSNorm):
    def forward(self, input: Tensor) -> Tensor:
        with torch.autocast(input.device.type, enabled=False):
            # Compiled, the norm is fused with what surrounds it, and the compiler decides what to keep.
            if self.weight is None or self.weight.requires_grad or torch.compiler.is_compiling():
                return super().forward(input)
            normalised: Tensor = _FrozenRMSNorm.apply(input, self.weight, self.eps)
            return normalised


LAYER_CLASSES: dict[type[nn.Module], type[nn.Module]] = {nn.LayerNorm: _LayerNorm, nn.RMSNorm: _RMSNorm}
"""PyTorch's classes, and those that take their place."""


class _FrozenRMSNorm(torch.autograd.Function):
    """`F.rms_norm` that keeps its input alone; where there is no fused kernel, PyTorch keeps it in float32."""

    @staticmethod
    def forward(ctx: Any, input: Tensor, weight: Tensor, eps: float | None) -> Tensor:
        ctx.save_for_backward(input, weight)
        ctx.eps = eps
        return F.rms_norm(input, weight.shape, weight, eps)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        # d/dx of w x r with r = 1 / sqrt(mean(x^2) + eps): r (w g - n mean(w g n)), where n = x r. In place: float32 copies of
        # queries and keys would be the peak of a step whose blocks are checkpointed.
        input, weight = ctx.saved_tensors
        eps = torch.finfo(input.dtype).eps if ctx.eps is None else ctx.eps
        normalised = input.float()
        scale = torch.linalg.vecdot(normalised, normalised).div_(input.shape[-1]).add_(eps).rsqrt_().unsqueeze(-1)
        normalised.mul_(scale)
        of_input = gradient.float() * weight.float()
        along = torch.linalg.vecdot(of_input, normalised).div_(input.shape[-1]).unsqueeze(-1)
        of_input.sub_(normalised.mul_(along)).mul_(scale)
        return of_input.to(input.dtype), None, None
