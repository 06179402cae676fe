"""Runs saves in a thread while training goes on: in order, and with their errors raised."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor


class Background:
    """Runs jobs in a thread, one after the other, in the order in which they were submitted.

    After a job that failed, later ones are not run; `wait` raises its error. When the process ends by itself,
    Python waits for the jobs.
    """

    def __init__(self) -> None:
        self._pool: ThreadPoolExecutor | None = None
        self._jobs: list[Future[None]] = []

    @property
    def busy(self) -> bool:
        """Whether there are jobs that nobody has waited for."""
        return bool(self._jobs)

    def submit(self, job: Callable[[], None]) -> None:
        """Run `job` after those submitted before."""
        if self._pool is None:
            self._pool = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        before = tuple(self._jobs)

        def unless_failed() -> None:
            for earlier in before:
                earlier.result()
            job()

        self._jobs.append(self._pool.submit(unless_failed))

    def wait(self) -> None:
        """Return when all jobs are done; raise the error of the first one that failed."""
        jobs, self._jobs = self._jobs, []
        if self._pool is not None:
            # No idle thread stays behind: the loader's workers are forked from this process.
            self._pool.shutdown()
            self._pool = None
        for job in jobs:
            job.result()
