"""How does a save go on while training does, with nothing lost or left unsaid if it fails?"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor


class Background:
    """Does jobs in a thread, one after the other, in the order in which they were given.

    After a job that failed, those given later are not done; `wait` raises what it raised. When the process ends by itself,
    Python waits for the jobs.
    """

    def __init__(self) -> None:
        self._pool: ThreadPoolExecutor | None = None
        self._jobs: list[Future[None]] = []

    @property
    def busy(self) -> bool:
        """Tell whether there are jobs that nobody has waited for."""
        return bool(self._jobs)

    def submit(self, job: Callable[[], None]) -> None:
        """Do `job` after those that were given before."""
        if self._pool is None:
            self._pool = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        before = tuple(self._jobs)

        def unless_failed() -> None:
            for earlier in before:
                earlier.result()
            job()

        self._jobs.append(self._pool.submit(unless_failed))

    def wait(self) -> None:
        """Return when all jobs are done; raise what the first one that failed raised."""
        jobs, self._jobs = self._jobs, []
        if self._pool is not None:
            # No idle thread stays behind: the loader's workers are forked from this process.
            self._pool.shutdown()
            self._pool = None
        for job in jobs:
            job.result()
