"""Runs partitions in Ray Data's actors, several at once, on one machine or on a cluster."""

from __future__ import annotations

import logging
import os
import pickle
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from dsd_lightning.cli.errors import message_for_user
from dsd_lightning.distillation.records import DistillationError
from dsd_lightning.distillation.runner import Worker
from dsd_lightning.distillation.store import Manifest

PARTITION, RESULT = "partition", "result"
"""Columns of what goes to the actors and of what comes back: a partition's number; its manifest, or why there is none."""

ENVIRONMENT = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_worker_register_timeout_seconds": "600"}
"""Settings of Ray before it is imported: send no usage statistics, and give a busy machine time to import a stage."""

ALONE = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0", "RAY_AUTH_MODE": "token"}
"""For a Ray of this machine alone: the first, its name notwithstanding, keeps it on the loopback address."""


@dataclass(frozen=True)
class Actors:
    """The actors of one stage.

    Attributes:
        actors: how many; each is one process, and runs one partition at a time.
        num_cpus: cores that each of them holds, and threads that it computes with.
        num_gpus: GPUs that each of them holds; None is one where Ray has any.
    """

    actors: int
    num_cpus: float | int
    num_gpus: float | int | None

    def __post_init__(self) -> None:
        if self.actors < 1 or self.num_cpus < 0 or (self.num_gpus or 0) < 0:
            raise DistillationError(
                f"executor.stages: actors={self.actors} must be at least 1, num_cpus={self.num_cpus} and "
                f"num_gpus={self.num_gpus} at least 0"
            )


class RayExecutor:
    """Ray Data deals the partitions out to a stage's actors. Every machine sees the same folders, at the same paths.

    Args:
        address: of the cluster to join, `auto` or `HOST:PORT`; None starts Ray on this machine, for this run alone.
        num_cpus, num_gpus: what a Ray that is started here may use; None is all.
        stages: the actors of each stage.

    Raises:
        DistillationError: Ray Data is not installed.
    """

    def __init__(
        self, address: str | None, num_cpus: int | None, num_gpus: int | None, stages: Mapping[str, Actors]
    ) -> None:
        os.environ |= ENVIRONMENT | (ALONE if address is None else {})
        try:
            import ray.data
        except ImportError as error:
            raise DistillationError(
                f"executor=ray needs Ray Data, which cannot be imported ({error}): pip install -e '.[ray]'"
            ) from error
        self.address, self.stages = address, stages
        self._started_with = {"num_cpus": num_cpus, "num_gpus": num_gpus, "include_dashboard": False}
        self._ray: Any = ray
        self._connected = False

    def mine(self, partitions: Sequence[int]) -> list[int]:
        """Return all partitions."""
        return list(partitions)

    def map(self, config: Mapping[str, Any], stage: str, partitions: Sequence[int]) -> Iterator[Manifest]:
        """Run the partitions, and yield the manifests in the order in which they are finished.

        Raises:
            DistillationError: there are not the cores or GPUs for the stage's actors.
            AgentFailure: one that ends the run, as the actor raised it.
        """
        worker = Worker(config, stage)  # wrong settings are refused here, and what is finished needs no actor
        todo = []
        try:
            for partition in partitions:
                if (done := worker.finished(partition)) is None:
                    todo.append(partition)
                else:
                    yield done
        finally:
            worker.close()
        if todo:
            self.connect()
            yield from self._on_actors(config, stage, todo)

    def connect(self) -> None:
        """Start Ray or join the cluster, unless this process has done so."""
        if self._ray.is_initialized():
            return
        here = self._started_with if self.address is None else {}
        self._ray.init(address=self.address or "local", logging_level=logging.WARNING, **here)
        self._connected = True

    def _on_actors(self, config: Mapping[str, Any], stage: str, partitions: Sequence[int]) -> Iterator[Manifest]:
        data = self._ray.data
        context = data.DataContext.get_current()
        context.enable_progress_bars = context.print_on_execution_start = False
        context.execution_no_progress_timeout_s = -1  # a partition may take longer than Ray would wait
        logging.getLogger("ray.data").setLevel(logging.WARNING)
        asked = self._holding(stage, len(partitions))
        rows = data.from_items([{PARTITION: each} for each in partitions], override_num_blocks=len(partitions))
        results = rows.map_batches(
            PartitionActor,
            fn_constructor_args=(dict(config), stage, os.getcwd()),
            batch_size=1,
            compute=data.ActorPoolStrategy(size=asked.actors, max_tasks_in_flight_per_actor=1),
            num_cpus=asked.num_cpus,
            num_gpus=asked.num_gpus,
        )
        for batch in results.iter_batches(batch_size=None, batch_format="numpy", prefetch_batches=0):
            for pickled in batch[RESULT]:
                result: Manifest | Exception = pickle.loads(pickled)
                if isinstance(result, Exception):
                    raise result
                yield result

    def _holding(self, stage: str, partitions: int) -> Actors:
        """Return the actors to start: no more than there are partitions, and all of which Ray has room for."""
        asked, there = self.stages[stage], self._ray.cluster_resources()
        actors = min(asked.actors, partitions)
        num_gpus = asked.num_gpus if asked.num_gpus is not None else float(there.get("GPU", 0.0) > 0)
        for name, each in (("CPU", asked.num_cpus), ("GPU", num_gpus)):
            if actors * each > (has := there.get(name, 0.0)):
                raise DistillationError(
                    f"executor.stages.{stage}: {actors} actors with {each:g} {name} each, but Ray has {has:g}, and would wait "
                    f"for more: lower executor.stages.{stage}.actors or executor.stages.{stage}.num_{name.lower()}s"
                )
        return Actors(actors, asked.num_cpus, num_gpus)

    def close(self) -> None:
        """Stop a Ray that was started here, with its actors, or leave the cluster."""
        if self._connected:
            self._ray.shutdown()
            self._connected = False


class PartitionActor:
    """One actor, as Ray Data calls it: it builds the stage once, and runs a partition a call.

    Args:
        config: the run's configuration, as plain containers.
        stage: which stage.
        folder: where the command was started; paths in the configuration are relative to it.
    """

    def __init__(self, config: Mapping[str, Any], stage: str, folder: str) -> None:
        os.chdir(folder)
        self.worker = Worker(config, stage)

    def __call__(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        """Run the partition of a batch of one row; return its manifest, or the error to show to the user."""
        result: Manifest | Exception
        try:
            result = self.worker.run(int(batch[PARTITION][0]))
        except Exception as error:
            if message_for_user(error) is None:
                raise  # a mistake in the code: Ray shows where
            result = error
        return {RESULT: np.array([pickle.dumps(result)], dtype=object)}
