"""Gradient checkpointing: chosen blocks compute their activations again in the backward pass."""

from __future__ import annotations

from typing import Any

from diffusers import ModelMixin
from torch import nn
from torch.utils.checkpoint import checkpoint

from dsd_lightning.architectures.base import Architecture


def is_checkpointed(index: int, choice: str | int) -> bool:
    """Return whether the block number `index` of all computes its activations again in the backward pass.

    Args:
        index: from 0.
        choice: "none", "all", or a number k: every k-th block, the first one among them.

    Raises:
        ValueError: another choice.
    """
    if choice in ("none", "all"):
        return choice == "all"
    if not isinstance(choice, int) or isinstance(choice, bool) or choice < 1:
        raise ValueError(
            f"gradient_checkpointing={choice}: choose none, all, auto, or a number k >= 1 for every k-th block"
        )
    return index % choice == 0


class _CheckpointedBlocks:
    """The `gradient_checkpointing_func` of diffusers' models: they call it for each of their blocks."""

    def __init__(self, blocks: set[nn.Module]) -> None:
        self.blocks = blocks

    def __call__(self, block: nn.Module, *inputs: Any) -> Any:
        if block in self.blocks:
            return checkpoint(block, *inputs, use_reentrant=False)
        return block(*inputs)


def checkpoint_blocks(architecture: Architecture, choice: str | int) -> None:
    """Checkpoint the chosen blocks of `architecture`; values do not change.

    Call it before blocks are compiled or sharded.

    Args:
        architecture: its `shard_units()` are the blocks.
        choice: "none", "all", or a number k: every k-th block, the first one among them.

    Raises:
        ValueError: another choice.
    """
    blocks = {unit for index, unit in enumerate(architecture.shard_units()) if is_checkpointed(index, choice)}
    if not blocks:
        return
    for model in architecture.modules():
        # The function is set on one model at a time: an architecture holds several.
        if isinstance(model, ModelMixin) and model is not architecture and model._supports_gradient_checkpointing:
            model.enable_gradient_checkpointing(_CheckpointedBlocks(blocks))
