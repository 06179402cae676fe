"""A Lightning strategy for sharded models, whose checkpoints any number of devices can read."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.core.optimizer import LightningOptimizer
from lightning.pytorch.strategies import ModelParallelStrategy, ParallelStrategy
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy
from torch.optim import Optimizer

from dsd_lightning.architectures.base import Architecture
from dsd_lightning.compute.dtensors import gather_nested, sharded_like
from dsd_lightning.compute.shard import shard

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, None: None}


class ShardedStrategy(ModelParallelStrategy):
    """FSDP2 over all devices, on Lightning's ModelParallelStrategy.

    Checkpoints are those of a single device: `Trainer.save_checkpoint` gathers trained values and moments on the
    first device (or lets each device write its shards, `FolderCheckpointIO(sharded=True)`), and each device reads its part of
    either. So the number of devices may change in between.

    Args:
        shard_frozen: False leaves the frozen base unsharded on every device.
        replicas: groups of devices that each hold a sharded model and all-reduce their gradients; 1 shards it among all
            devices, the number of nodes within each node.
        weight_dtype: dtype in which blocks are all-gathered, "bfloat16" or "float32"; None: each parameter's own.
            Trained values and the sum of gradients are float32 all the same.
        reshard_after_forward: False keeps blocks gathered between forward and backward: faster, and more memory.
        timeout_minutes: after which a process that waits for the others gives up.
        process_group_backend: None: nccl on CUDA devices, gloo on CPUs.
    """

    def __init__(
        self,
        shard_frozen: bool = True,
        replicas: int = 1,
        weight_dtype: str | None = None,
        reshard_after_forward: bool = True,
        timeout_minutes: float = 30,
        process_group_backend: str | None = None,
    ) -> None:
        super().__init__(
            tensor_parallel_size=1,
            save_distributed_checkpoint=False,
            process_group_backend=process_group_backend,
            timeout=timedelta(minutes=timeout_minutes),
        )
        if weight_dtype not in DTYPES:
            raise ValueError(f"trainer.strategy.weight_dtype={weight_dtype}: choose null, bfloat16 or float32")
        if replicas < 1:
            raise ValueError(f"trainer.strategy.replicas={replicas} must be at least 1")
        self.shard_frozen, self.replicas, self.reshard_after_forward = shard_frozen, replicas, reshard_after_forward
        self.policy = MixedPrecisionPolicy(
            param_dtype=DTYPES[weight_dtype],
            reduce_dtype=torch.float32,
            cast_forward_inputs=False,  # timesteps would be rounded
        )

    def setup_environment(self) -> None:
        """Connect the processes and lay out the devices.

        Raises:
            ValueError: if the replicas do not divide the devices.
        """
        self._data_parallel_size = self.num_nodes * self.num_processes
        if self._data_parallel_size % self.replicas:
            raise ValueError(
                f"trainer.strategy.replicas={self.replicas} does not divide the {self._data_parallel_size} devices; give "
                "the number of nodes, to shard the model within each"
            )
        super().setup_environment()
        kind, devices = self.root_device.type, self.world_size
        if self.replicas > 1:
            shape, names = (self.replicas, devices // self.replicas), ("replicate", "shard")
            self._device_mesh = init_device_mesh(kind, shape, mesh_dim_names=names)
        else:
            self._device_mesh = init_device_mesh(kind, (devices,), mesh_dim_names=("shard",))

    @property
    def distributed_sampler_kwargs(self) -> dict[str, Any]:
        """Each device reads batches of its own."""
        return {"num_replicas": self.world_size, "rank": self.global_rank}

    def shard(self, architecture: Architecture) -> None:
        """Shard `architecture` among the devices; `LightningModule.configure_model` calls it."""
        shard(
            architecture,
            self.device_mesh,
            self.policy,
            shard_frozen=self.shard_frozen,
            reshard_after_forward=self.reshard_after_forward,
        )

    # --- Checkpoints, through the trainer's CheckpointIO.

    @property
    def restore_checkpoint_after_setup(self) -> bool:
        """The model is sharded before the strategy's setup, so that weights can be read as always."""
        return False

    @property
    def lightning_restore_optimizer(self) -> bool:
        """Let Lightning hand the optimizer's state back."""
        return True

    def lightning_module_state_dict(self) -> dict[str, Any]:
        """Return nothing: the module itself says what a checkpoint holds."""
        return {}

    def optimizer_state(self, optimizer: Optimizer) -> dict[str, Any]:
        """Return the optimizer's state, numbered as on one device, with this device's shards."""
        if isinstance(optimizer, LightningOptimizer):
            optimizer = optimizer._optimizer
        state: dict[str, Any] = optimizer.state_dict()
        return state

    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        """Give every optimizer its shards of a full state."""
        for optimizer, state in zip(self.optimizers, checkpoint["optimizer_states"], strict=True):
            parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
            numbers = [number for group in state["param_groups"] for number in group["params"]]
            sharded = {
                number: {
                    name: sharded_like(value, parameter)
                    if isinstance(value, torch.Tensor) and value.shape == parameter.shape
                    else value
                    for name, value in state["state"].get(number, {}).items()
                }
                for number, parameter in zip(numbers, parameters, strict=True)
            }
            optimizer.load_state_dict({**state, "state": {k: v for k, v in sharded.items() if v}})

    def save_checkpoint(
        self, checkpoint: dict[str, Any], filepath: str | Path, storage_options: Any | None = None
    ) -> None:
        """Write a checkpoint: from the first device, or each device its shards, as the CheckpointIO is set."""
        if getattr(self.checkpoint_io, "sharded", False):
            self.checkpoint_io.save_checkpoint(checkpoint, filepath, storage_options)
        else:
            ParallelStrategy.save_checkpoint(self, gather_nested(checkpoint), filepath, storage_options)

    def load_checkpoint(self, checkpoint_path: str | Path, weights_only: bool | None = None) -> dict[str, Any]:
        """Read a checkpoint; of what is sharded here, each device reads its own part if the CheckpointIO can."""
        architecture = getattr(self.lightning_module, "architecture", None)
        if architecture is None or not hasattr(self.checkpoint_io, "load_sharded"):
            return ParallelStrategy.load_checkpoint(self, checkpoint_path, weights_only)
        loaded: dict[str, Any] = self.checkpoint_io.load_sharded(checkpoint_path, dict(architecture.trainable()))
        return loaded
