"""Runs partitions in this process, one after another; or some of them, as one of several such commands."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from dsd_lightning.distillation.records import DistillationError
from dsd_lightning.distillation.runner import Worker
from dsd_lightning.distillation.store import Manifest


class LocalExecutor:
    """In process. Within a partition, models get many requests at once, and grids are generated in batches.

    Args:
        task: which of `tasks` commands this is, from 0; partitions are dealt out in turn. A SLURM array gives both.
        tasks: how many such commands share the partitions.

    Raises:
        DistillationError: there is no such task.
    """

    def __init__(self, task: int = 0, tasks: int = 1) -> None:
        if not 0 <= task < tasks:
            raise DistillationError(f"executor.task={task} of executor.tasks={tasks}: tasks count from 0")
        self.task, self.tasks = task, tasks

    def mine(self, partitions: Sequence[int]) -> list[int]:
        """Return this task's partitions."""
        return [partition for partition in partitions if partition % self.tasks == self.task]

    def map(self, config: Mapping[str, Any], stage: str, partitions: Sequence[int]) -> Iterator[Manifest]:
        """Run the partitions in order."""
        worker = Worker(config, stage)
        try:
            for partition in partitions:
                yield worker.run(partition)
        finally:
            worker.close()

    def close(self) -> None:
        """Nothing is held between stages."""
