"""Shards an architecture among devices with FSDP2, block by block."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method

from dsd_lightning.architectures.base import Architecture


def shard(
    architecture: Architecture,
    mesh: DeviceMesh,
    policy: MixedPrecisionPolicy,
    *,
    shard_frozen: bool = True,
    reshard_after_forward: bool = True,
) -> None:
    """Shard the parameters of `architecture`, in place; a second call does nothing.

    Each of `architecture.shard_units()` is all-gathered for its own computation, and the rest for the whole step.

    Args:
        architecture: complete, with equal values on every device.
        mesh: of one dimension; or of two, over the first of which the shards are replicated.
        policy: dtypes in which weights are all-gathered and gradients reduced.
        shard_frozen: False leaves frozen parameters unsharded; only what is trained is sharded. (Frozen parts beside the
            transformer, which read images before the forward pass, are never sharded.)
        reshard_after_forward: False keeps a block gathered between its forward and its backward pass.

    Raises:
        ValueError: if the architecture cannot be sharded, naming the remedy.
    """
    if isinstance(architecture, FSDPModule):
        return
    architecture.require_shardable()
    unsharded = {parameter for parameter in architecture.parameters() if not parameter.requires_grad}
    if shard_frozen:
        unsharded -= set(architecture.transformer.parameters())
    options: dict[str, Any] = {"mesh": mesh, "mp_policy": policy, "ignored_params": unsharded}
    for unit in architecture.shard_units():
        if shard_frozen or any(parameter.requires_grad for parameter in unit.parameters()):
            fully_shard(unit, reshard_after_forward=reshard_after_forward, **options)
    fully_shard(architecture, reshard_after_forward=False, **options)
    # The objective and the sampler call it before the forward pass.
    register_fsdp_forward_method(architecture, "prepare")
    architecture.register_forward_hook(_reshard)


def _reshard(architecture: nn.Module, *_: Any) -> None:
    """Free what was all-gathered and what no backward pass will free."""
    if not torch.is_grad_enabled():
        for module in architecture.modules():
            if isinstance(module, FSDPModule):
                module.reshard()
