"""A linear layer under peft's LoRA factors, and what a step through it computes."""

from __future__ import annotations

import copy
from typing import Any

import torch
from peft import LoraConfig, inject_adapter_in_model
from torch import Tensor, nn

from dsd_lightning.flux.fused_lora import FusedLoraLinear, fuse_
from dsd_lightning.randomness import normal

WIDTH, WIDER = 24, 40


def with_factors(dtype: torch.dtype = torch.float32, bias: bool = True, **settings: Any) -> nn.Module:
    """Return a frozen linear layer in `dtype` under peft's float32 factors, none of them zero."""
    model = nn.Sequential(nn.Linear(WIDTH, WIDER, bias=bias).to(dtype)).requires_grad_(False)
    config = LoraConfig(**{"r": 4, "lora_alpha": 6, "target_modules": ["0"]} | settings)
    inject_adapter_in_model(config, model)
    with torch.no_grad():
        for name, value in model.named_parameters():
            value.copy_(0.3 * normal(value.shape, name).to(value.dtype))
            if "lora_" in name:
                value.data = value.data.float()
    return model


def fused(model: nn.Module) -> nn.Module:
    changed = copy.deepcopy(model)
    fuse_(changed)
    assert any(type(each) is FusedLoraLinear for each in changed.modules())
    return changed


def results(model: nn.Module, shape: tuple[int, ...], dtype: torch.dtype, autocast: bool) -> dict[str, Tensor]:
    x = normal((*shape, WIDTH), "x").to(dtype).requires_grad_()
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        output = model(x)
    (output.float() * normal(output.shape, "weights")).sum().backward()
    gradients = {name: p.grad for name, p in model.named_parameters() if p.requires_grad}
    return {"output": output.detach(), "x": x.grad, **gradients}  # type: ignore[dict-item]
