"""When a failed request is sent again, and after how long."""

from __future__ import annotations

import hashlib
import logging
from dataclasses import dataclass

import tenacity

from dsd_lightning.agents.failures import AgentFailure

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Retries:
    """One policy for all providers, whose libraries differ: waits double, within bounds, and obey Retry-After.

    Retried are 408, 409, 429 and 5xx, broken connections, time-outs and answers that break the protocol; other 4xx never.
    """

    attempts: int = 6
    """How often a request is sent at most."""
    first_wait: float = 1.0
    """Seconds before the second attempt; each later wait is twice as long."""
    max_wait: float = 60.0
    """Seconds; waits grow no longer."""
    max_retry_after: float = 300.0
    """Seconds; a provider that asks for a longer wait has failed."""

    def __post_init__(self) -> None:
        if self.attempts < 1:
            raise ValueError(f"retries.attempts={self.attempts}: at least 1, which is no retry")
        for name in ("first_wait", "max_wait", "max_retry_after"):
            if getattr(self, name) < 0:
                raise ValueError(f"retries.{name}={getattr(self, name)}: seconds, must be >= 0")

    def worth_it(self, error: BaseException) -> bool:
        """Return whether another attempt may succeed."""
        return isinstance(error, AgentFailure) and error.retryable and (error.retry_after or 0) <= self.max_retry_after

    def wait(self, attempt: int, error: BaseException | None, key: str) -> float:
        """Return the seconds to wait after the failure of attempt `attempt`, counted from 1.

        Waits are spread over a quarter of their length by the request's key, so that requests that failed together do not
        return together; no random generator is touched.
        """
        asked = error.retry_after if isinstance(error, AgentFailure) else None
        spread = int.from_bytes(hashlib.sha256(f"{key} {attempt}".encode()).digest()[:4]) / 2**32
        grown = min(self.max_wait, self.first_wait * 2 ** (attempt - 1)) * (0.75 + 0.25 * spread)
        return max(grown, asked) if asked is not None else grown

    def loop(self, key: str) -> tenacity.AsyncRetrying:
        """Return tenacity's loop over the attempts of the request with the cache key `key`."""

        def wait(state: tenacity.RetryCallState) -> float:
            error = state.outcome.exception() if state.outcome is not None else None
            return self.wait(state.attempt_number, error, key)

        def report(state: tenacity.RetryCallState) -> None:
            error = state.outcome.exception() if state.outcome is not None else None
            seconds = state.next_action.sleep if state.next_action is not None else 0.0
            log.info("attempt %d failed, next in %.1f s: %s", state.attempt_number, seconds, error)

        return tenacity.AsyncRetrying(
            stop=tenacity.stop_after_attempt(self.attempts),
            wait=wait,
            retry=tenacity.retry_if_exception(self.worth_it),
            before_sleep=report,
            reraise=True,
        )
