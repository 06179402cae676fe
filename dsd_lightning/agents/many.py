"""How are many requests asked, so many at a time, with their results in order?"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable

from dsd_lightning.agents.failures import AgentFailure
from dsd_lightning.agents.messages import Answer, Request


async def ask_all(
    ask: Callable[[Request], Awaitable[Answer]],
    requests: Iterable[Request],
    concurrency: int,
    on_answer: Callable[[int, Answer | AgentFailure], None] | None = None,
) -> list[Answer | AgentFailure]:
    """Return answers or failures, in the order of `requests`.

    Args:
        ask: asks one.
        requests: taken up as places become free; only `concurrency` of them are held at a time.
        concurrency: requests under way at a time.
        on_answer: told index and result as each arrives.

    Raises:
        AgentFailure: one that stops everything, as soon as the requests under way have ended.
    """
    results: dict[int, Answer | AgentFailure] = {}
    numbered = enumerate(requests)
    fatal: list[AgentFailure] = []

    async def take() -> None:
        for index, request in numbered:
            try:
                results[index] = await ask(request)
            except AgentFailure as failure:
                results[index] = failure
                if failure.stops_everything:
                    fatal.append(failure)
            if on_answer is not None:
                on_answer(index, results[index])
            if fatal:
                return

    async with asyncio.TaskGroup() as group:
        for _ in range(concurrency):
            group.create_task(take())
    if fatal:
        raise fatal[0]
    return [results[index] for index in range(len(results))]
