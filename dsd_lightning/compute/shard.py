"""How is an architecture divided among devices? FSDP2, block by block."""

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
    """Replace the parameters of `architecture` by their pieces, in place; twice does nothing more.

    Each of `architecture.shard_units()` is put together for its own computation, and the rest for the whole step.

    Args:
        architecture: complete, with equal values on every device.
        mesh: of one dimension; or of two, over the first of which the pieces are replicated.
        policy: in which dtypes weights are put together and gradients added up.
        shard_frozen: False leaves frozen parameters whole on every device; only what is trained is divided. (Frozen parts
            beside the transformer, which read images before the forward pass, always stay whole.)
        reshard_after_forward: False keeps a block together between its forward and its backward pass.

    Raises:
        ValueError: if the architecture cannot be divided, naming the remedy.
    """
    if isinstance(architecture, FSDPModule):
        return
    architecture.require_shardable()
    stays_whole = {parameter for parameter in architecture.parameters() if not parameter.requires_grad}
    if shard_frozen:
        stays_whole -= set(architecture.transformer.parameters())
    options: dict[str, Any] = {"mesh": mesh, "mp_policy": policy, "ignored_params": stays_whole}
    for unit in architecture.shard_units():
        if shard_frozen or any(parameter.requires_grad for parameter in unit.parameters()):
            fully_shard(unit, reshard_after_forward=reshard_after_forward, **options)
    fully_shard(architecture, reshard_after_forward=False, **options)
    # The objective and the sampler call it before the forward pass.
    register_fsdp_forward_method(architecture, "prepare")
    architecture.register_forward_hook(_reshard)


def _reshard(architecture: nn.Module, *_: Any) -> None:
    """Let go of what was put together and that no backward pass will let go of."""
    if not torch.is_grad_enabled():
        for module in architecture.modules():
            if isinstance(module, FSDPModule):
                module.reshard()
