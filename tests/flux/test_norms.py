"""Norms answer in their input's dtype under autocast, with the values and gradients of PyTorch's."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from dsd_lightning.flux.norms import keep_dtype_
from dsd_lightning.randomness import normal

WIDTH = 32


def norms() -> dict[str, nn.Module]:
    rms = nn.RMSNorm(WIDTH, eps=1e-6).requires_grad_(False)
    rms.weight.copy_(1 + 0.3 * normal((WIDTH,), "weight"))
    default = nn.RMSNorm(WIDTH).requires_grad_(False)
    return {
        "layer": nn.LayerNorm(WIDTH, elementwise_affine=False, eps=1e-6),
        "rms": rms,
        "rms, default eps": default,
        "rms, trained": nn.RMSNorm(WIDTH, eps=1e-6),
    }


@pytest.mark.parametrize("name", norms())
def test_values_and_gradients_are_pytorchs(name: str) -> None:
    plain = norms()[name]
    model = nn.Sequential(copy.deepcopy(plain))
    keep_dtype_(model)
    results = []
    for norm in (plain, model):
        x = normal((3, 5, WIDTH), "x").requires_grad_()
        output = norm(x)
        (output * normal(output.shape, "weights")).sum().backward()
        results.append((output.detach(), x.grad))
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("name", ["layer", "rms"])
def test_autocast_does_not_widen_them(name: str) -> None:
    model = nn.Sequential(norms()[name]).to(torch.bfloat16)
    keep_dtype_(model)
    x = normal((3, WIDTH), "x").to(torch.bfloat16).requires_grad_()
    kept: list[torch.dtype] = []

    def pack(value: torch.Tensor) -> torch.Tensor:
        if value.numel() == x.numel():
            kept.append(value.dtype)
        return value

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda value: value), torch.autocast("cpu", torch.bfloat16):
        output = model(x)
    assert output.dtype == torch.bfloat16
    assert kept
    assert set(kept) == {torch.bfloat16}
    output.float().square().sum().backward()
    assert x.grad is not None
    assert x.grad.dtype == torch.bfloat16
