"""On which device does a frozen part compute, when hooks of accelerate keep its weights elsewhere in between?"""

from __future__ import annotations

import torch
from torch import nn


def execution_device(module: nn.Module) -> torch.device:
    """Return the device on which `module` wants its inputs: that of its offload hooks, or else of its weights."""
    for part in module.modules():
        device = getattr(getattr(part, "_hf_hook", None), "execution_device", None)
        if device is not None:
            return torch.device(device)
    return next(module.parameters()).device
