"""Gathers single requests into batches and hands each its own answer, also over a kill."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Protocol, TypeVar, runtime_checkable

from dsd_lightning.agents.batch.folder import Batch, BatchFolder, lines_by_key
from dsd_lightning.agents.failures import AgentFailure

log = logging.getLogger(__name__)

Result = TypeVar("Result")

_TRIES = 5
"""How often the making of a batch is tried before its requests have failed."""


@dataclass(frozen=True)
class Ended:
    """The outcome of a batch: its answered lines, and why the others have none."""

    lines: bytes
    failure: AgentFailure


@runtime_checkable
class BatchService(Protocol):
    """A provider's batches. Every method raises the `AgentFailure` that fits."""

    async def submit(self, batch: Batch, requests: bytes) -> str:
        """Submit the lines `requests`; return the provider's id of the batch."""
        ...

    async def find(self, batch: Batch) -> str | None:
        """Return the id of a batch that was submitted, if it was."""
        ...

    async def ended(self, batch: Batch) -> Ended | None:
        """Return the outcome of a batch; None while it is under way."""
        ...

    def failure_of(self, line: dict[str, Any]) -> AgentFailure | None:
        """Return why a line holds no answer; None where it does."""
        ...


@dataclass(frozen=True)
class Gathering:
    """How requests are gathered, and how often batches are polled.

    Attributes:
        folder: of the batches that are under way; processes may share it.
        gather: seconds without a new request after which a batch is submitted.
        poll: seconds between two polls.
        max_requests: of one batch.
        max_bytes: of the requests of one batch.

    Raises:
        ValueError: a number that makes no sense.
    """

    folder: str
    gather: float | int
    poll: float | int
    max_requests: int
    max_bytes: float | int

    def __post_init__(self) -> None:
        for name in ("gather", "poll", "max_requests", "max_bytes"):
            if getattr(self, name) <= 0:
                raise ValueError(f"provider.batches.{name}={getattr(self, name)}: must be > 0")


class Gatherer:
    """Gathers requests until none has come for a while, submits them, and waits; bound to one event loop.

    A batch is on disk before it is submitted, its id as soon as there is one, its answers as soon as they are fetched. A
    process that comes after a killed one waits for the same batches.

    Args:
        service: the provider's batches.
        settings: how they are gathered.
    """

    def __init__(self, service: BatchService, settings: Gathering) -> None:
        self.service, self.settings, self.folder = service, settings, BatchFolder(settings.folder)
        self._gathered: dict[str, bytes] = {}
        self._bytes = 0
        self._timer: asyncio.TimerHandle | None = None
        self._left: dict[str, Batch] = {}  # by key: batches under way that other processes have submitted
        # By key: when its batch has ended, why it failed; or None, to look again among what has arrived.
        self._outcomes: dict[str, asyncio.Future[AgentFailure | None]] = {}
        self._arrived: dict[str, dict[str, Any]] = {}
        self._finished: list[Batch] = []
        self._tasks: set[asyncio.Task[None]] = set()
        self._resuming = asyncio.get_running_loop().create_task(self._resume())

    async def answer(self, key: str, line: Callable[[], bytes]) -> dict[str, Any]:
        """Return the answered line of the request `key`: of a batch that is under way with it, or else of the next.

        Args:
            key: the request's cache key; the `custom_id` of its line.
            line: makes the request's line.

        Raises:
            AgentFailure: of the line, or of its batch. The same request can be asked again, in another batch.
        """
        await asyncio.shield(self._resuming)
        while key not in self._arrived:
            if key in self._left:
                self._go_on(self._left[key])
            elif key not in self._outcomes:
                self._put(key, line())
            # A caller that gives up does not end the batch, which is paid for.
            failure = await asyncio.shield(self._outcomes[key])
            if failure is not None:
                raise failure
        return self._arrived.pop(key)

    async def close(self) -> None:
        """Stop waiting; remove finished batches all of whose answers were read."""
        if self._timer is not None:
            self._timer.cancel()
        for task in [*self._tasks, self._resuming]:
            task.cancel()
        await asyncio.gather(*self._tasks, self._resuming, return_exceptions=True)
        for batch in self._finished:
            if not self._arrived.keys() & set(batch.keys):
                self.folder.remove(batch)

    def _put(self, key: str, line: bytes) -> None:
        if self._bytes + len(line) > self.settings.max_bytes:
            self._submit()
        self._outcomes[key] = asyncio.get_running_loop().create_future()
        self._gathered[key] = line
        self._bytes += len(line)
        if self._timer is not None:
            self._timer.cancel()
        self._timer = asyncio.get_running_loop().call_later(self.settings.gather, self._submit)
        if len(self._gathered) >= self.settings.max_requests:
            self._submit()

    def _submit(self) -> None:
        gathered, self._gathered, self._bytes = self._gathered, {}, 0
        if gathered:
            self._start(tuple(gathered), self._ask(gathered))

    def _start(self, keys: tuple[str, ...], work: Coroutine[Any, Any, None]) -> None:
        async def settled() -> None:
            try:
                await work
            except AgentFailure as failure:
                for key in keys:
                    self._settle(key, failure)
            except Exception as error:
                for key in keys:
                    if (outcome := self._outcomes.pop(key, None)) is not None and not outcome.done():
                        outcome.set_exception(error)  # a full disk, or a bug: nobody is to wait for ever
                raise

        task = asyncio.get_running_loop().create_task(settled())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _resume(self) -> None:
        """Read what other processes have left: answers that were fetched, and batches that are under way."""
        for batch in await asyncio.to_thread(self.folder.all):
            answered = await asyncio.to_thread(self.folder.answers, batch)
            if answered is not None:
                self._take(batch, answered)
            else:
                self._left |= dict.fromkeys(batch.keys, batch)

    def _go_on(self, batch: Batch) -> None:
        """Wait for a batch that another process has left."""
        for key in batch.keys:
            self._left.pop(key, None)
            self._outcomes.setdefault(key, asyncio.get_running_loop().create_future())
        self._start(batch.keys, self._find_and_wait(batch))

    async def _find_and_wait(self, batch: Batch) -> None:
        if batch.id is None:
            # Killed between submitting and noting the id; or before, and then its requests are gathered again.
            batch_id = await self._trying(partial(self.service.find, batch))
            if batch_id is None:
                self.folder.remove(batch)
                for key in batch.keys:
                    self._settle(key, None)
                return
            batch = self.folder.note(replace(batch, id=batch_id))
        log.info("batch %s of %d requests is under way already", batch.id, len(batch.keys))
        await self._wait_for(batch)

    async def _ask(self, lines: dict[str, bytes]) -> None:
        batch = await asyncio.to_thread(self.folder.make, lines)
        requests, again = b"".join(lines.values()), False

        async def submit() -> str:
            nonlocal again
            batch_id = await self.service.find(batch) if again else None  # a broken connection may have submitted it
            again = True
            return batch_id or await self.service.submit(batch, requests)

        try:
            given = await self._trying(submit, _TRIES)
        except AgentFailure as failure:
            if not failure.may_be_billed:
                self.folder.remove(batch)
            raise
        batch = await asyncio.to_thread(self.folder.note, replace(batch, id=given))
        log.info("batch %s: %d requests", batch.id, len(batch.keys))
        await self._wait_for(batch)

    async def _wait_for(self, batch: Batch) -> None:
        while (ended := await self._trying(partial(self.service.ended, batch))) is None:
            await asyncio.sleep(self.settings.poll)
        lines = lines_by_key(ended.lines)
        await asyncio.to_thread(self.folder.keep, batch, ended.lines)
        self._take(batch, lines, ended.failure)

    async def _trying(self, work: Callable[[], Awaitable[Result]], tries: int | None = None) -> Result:
        """Return what `work` does, tried again after failures that may pass; without bound where `tries` is None."""
        failed = 0
        while True:
            try:
                return await work()
            except AgentFailure as failure:
                failed += 1
                if not failure.retryable or failed == tries:
                    raise
                wait = max(self.settings.poll, failure.retry_after or 0.0)
                log.info("batch: %s; next try in %.0f s", failure, wait)
            await asyncio.sleep(wait)

    def _take(self, batch: Batch, lines: dict[str, dict[str, Any]], missing: AgentFailure | None = None) -> None:
        """Hand out the answers of a finished batch; what failed in it can be sent again."""
        self._finished.append(batch)
        for key in batch.keys:
            failure = self.service.failure_of(lines[key]) if key in lines else missing
            if key in lines and failure is None:
                self._arrived[key] = lines[key]
            self._settle(key, failure)

    def _settle(self, key: str, failure: AgentFailure | None) -> None:
        if (outcome := self._outcomes.pop(key, None)) is not None and not outcome.done():
            outcome.set_result(failure)
