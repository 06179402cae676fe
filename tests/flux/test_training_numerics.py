"""Fused LoRA layers and norms that keep their dtype train as peft's layers and PyTorch's norms do under autocast."""

from __future__ import annotations

import torch
from peft.tuners.lora.layer import Linear as PeftLinear
from support.models.architecture_rows import ROWS
from support.models.step_memory import loss_of, transformer
from torch import Tensor

from dsd_lightning.flux.fused_lora import FusedLoraLinear
from dsd_lightning.flux.norms import LAYER_CLASSES

STEPS = 20


def trained(dtype: torch.dtype, stock: bool) -> tuple[list[float], dict[str, Tensor]]:
    """Return the losses of 20 steps of `parallel` on random encodings, and what they added to the trained values."""
    torch.manual_seed(0)
    architecture = ROWS["parallel"].build(transformer(dtype))
    if stock:
        for module in architecture.modules():
            if type(module) is FusedLoraLinear:
                module.__class__ = PeftLinear
            for plain, changed in LAYER_CLASSES.items():
                if type(module) is changed:
                    module.__class__ = plain
    parameters = dict(architecture.trainable())
    start = {name: value.detach().clone() for name, value in parameters.items()}
    optimizer = torch.optim.AdamW(parameters.values(), lr=3e-3)
    losses = []
    for _ in range(STEPS):
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
            loss = loss_of(architecture)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses, {name: value.detach() - start[name] for name, value in parameters.items()}


def distance(one: dict[str, Tensor], other: dict[str, Tensor]) -> float:
    """Return the norm of the difference of two sets of values over that of the second one."""
    difference = sum(float((one[name] - value).square().sum()) for name, value in other.items())
    return float((difference / sum(float(value.square().sum()) for value in other.values())) ** 0.5)


def test_twenty_steps_are_those_of_peft() -> None:
    exact_losses, exact = trained(torch.float32, stock=True)
    same_losses, same = trained(torch.float32, stock=False)
    assert distance(same, exact) < 1e-5
    assert max(abs(a - b) / b for a, b in zip(same_losses, exact_losses, strict=True)) < 1e-5
    stock_losses, stock = trained(torch.bfloat16, stock=True)
    fused_losses, fused = trained(torch.bfloat16, stock=False)
    # Both round to bfloat16, at other places: neither is nearer to float32 by more than a tenth.
    assert distance(fused, exact) < 1.1 * distance(stock, exact)
    assert max(abs(a - b) / b for a, b in zip(fused_losses, stock_losses, strict=True)) < 1e-3
    assert exact_losses[-1] < 0.9 * exact_losses[0]
