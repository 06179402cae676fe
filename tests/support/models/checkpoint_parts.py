"""Small checkpoints to write and read."""

from __future__ import annotations

from typing import Any

import torch


def some_checkpoint(value: float) -> dict[str, Any]:
    return {
        "state_dict": {"weight": torch.full((3,), value)},
        "ema": {"weight": torch.full((3,), value / 2)},
        "adapter": {"architecture": "parallel"},
        "optimizer_states": [{"state": {0: {"exp_avg": torch.full((3,), value)}}}],
    }
