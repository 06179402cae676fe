"""Keeps concurrency, requests a minute and tokens a minute within what a provider allows."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass

WINDOW = 60.0
"""Seconds over which requests and tokens are counted."""
_LOOK_AGAIN = 1.0
"""Seconds until a look whether answers took fewer tokens than were counted for them."""


@dataclass
class Slot:
    """A request that has been let through."""

    started: float
    tokens: int
    """What it counts for: a bound before its answer, then what it took; set by whoever holds the slot."""


class Limits:
    """Lets requests through, first come, first served, as soon as the last 60 seconds have room for them.

    Limits hold for one agent in one process. Where several processes share an account, give each its share.

    Args:
        concurrency: requests under way at a time.
        requests_per_minute: None is no limit.
        tokens_per_minute: of prompts and answers together; None is no limit.
        clock: seconds, never going back; tests put their own.
        sleep: waits for seconds of that clock.
    """

    def __init__(
        self,
        concurrency: int,
        requests_per_minute: int | None = None,
        tokens_per_minute: int | None = None,
        *,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        for name, value in (
            ("concurrency", concurrency),
            ("requests_per_minute", requests_per_minute),
            ("tokens_per_minute", tokens_per_minute),
        ):
            if value is not None and value < 1:
                raise ValueError(f"limits.{name}={value}: at least 1" + (", or null" if name != "concurrency" else ""))
        self.concurrency = concurrency
        self._requests = requests_per_minute
        self._tokens = tokens_per_minute
        self._clock = clock
        self._sleep = sleep
        self._slots = asyncio.Semaphore(concurrency)
        self._turn = asyncio.Lock()
        self._window: deque[Slot] = deque()
        self._paused_until = 0.0

    @asynccontextmanager
    async def slot(self, tokens: int) -> AsyncIterator[Slot]:
        """Wait for room for a request of up to `tokens` tokens, and hold one of the `concurrency` places.

        Raises:
            ValueError: one request is larger than a whole minute's tokens.
        """
        if self._tokens is not None and tokens > self._tokens:
            raise ValueError(
                f"a request of up to {tokens} tokens can never pass limits.tokens_per_minute={self._tokens}; raise that, "
                "or lower sampling.max_output_tokens"
            )
        async with self._slots:
            async with self._turn:
                while (wait := self._wait_for(tokens)) > 0:
                    await self._sleep(wait)
                slot = Slot(self._clock(), tokens)
                self._window.append(slot)
            yield slot

    def least_seconds(self, calls: float, tokens: float) -> float:
        """Return the seconds that so many calls with so many tokens, in and out, take at least by what a minute allows."""
        minutes = [0.0]
        if self._requests is not None:
            minutes.append(calls / self._requests)
        if self._tokens is not None:
            minutes.append(tokens / self._tokens)
        return WINDOW * max(minutes)

    def pause(self, seconds: float) -> None:
        """Let nothing through for `seconds`: the provider has said so to one request, and means all."""
        self._paused_until = max(self._paused_until, self._clock() + seconds)

    def _wait_for(self, tokens: int) -> float:
        """Return the seconds until something may change; 0 if a request of `tokens` tokens may pass now."""
        now = self._clock()
        if self._paused_until > now:
            return self._paused_until - now
        while self._window and self._window[0].started + WINDOW <= now:
            self._window.popleft()
        if self._requests is not None and len(self._window) >= self._requests:
            return self._window[0].started + WINDOW - now
        if self._tokens is not None and sum(slot.tokens for slot in self._window) + tokens > self._tokens:
            return min(_LOOK_AGAIN, self._window[0].started + WINDOW - now)
        return 0.0
