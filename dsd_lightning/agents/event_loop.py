"""Runs coroutines on an event loop in a daemon thread of its own, for callers in any thread."""

from __future__ import annotations

import asyncio
import atexit
import threading
from collections.abc import Awaitable, Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from typing import Any, TypeVar

from anyio.from_thread import BlockingPortal, start_blocking_portal

Result = TypeVar("Result")


class EventLoop:
    """An event loop that starts with the first call, and again with the first one after `close`.

    Args:
        workers: threads for calls that block (`asyncio.to_thread`).
        on_close: called on the loop before it ends.
    """

    def __init__(self, workers: int, on_close: Callable[[], Awaitable[None]]) -> None:
        self._workers, self._on_close = workers, on_close
        self._portal: BlockingPortal | None = None
        self._opened = ExitStack()
        self._starting = threading.Lock()

    def start(self, work: Callable[..., Awaitable[Result]], *arguments: Any) -> Future[Result]:
        """Start `work`, and return where its result will be."""
        with self._starting:
            if self._portal is None:
                self._portal = self._opened.enter_context(start_blocking_portal(name="agents"))
                # Left open at the interpreter's end, the portal would wait for its daemon thread, which is gone by then.
                atexit.register(self.close)
                self._portal.call(_set_worker_threads, self._workers)
            return self._portal.start_task_soon(work, *arguments)

    def run(self, work: Callable[..., Awaitable[Result]], *arguments: Any) -> Result:
        """Return the result of `work`; a caller that is interrupted, as by Ctrl-C, cancels it."""
        future = self.start(work, *arguments)
        try:
            return future.result()
        except BaseException:
            future.cancel()  # nothing more is to be sent
            raise

    def close(self) -> None:
        """End the loop; what is still under way is cancelled."""
        atexit.unregister(self.close)
        with self._starting:
            portal, self._portal, opened = self._portal, None, self._opened.pop_all()
        with opened:
            if portal is not None:
                portal.call(self._on_close)
                portal.call(portal.stop, True)


async def _set_worker_threads(number: int) -> None:
    asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(number, thread_name_prefix="agents"))
