"""Sends many requests at once, within an agent's limits, with the results in order."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, TypeVar

from dsd_lightning.agents.failures import AgentFailure
from dsd_lightning.agents.messages import Answer, Message, Request

if TYPE_CHECKING:
    from dsd_lightning.agents.agent import Agent

Item = TypeVar("Item")
Result = TypeVar("Result")


async def ask_all(
    ask: Callable[[Request], Awaitable[Answer]],
    requests: Iterable[Request],
    concurrency: int,
    on_answer: Callable[[int, Answer | AgentFailure], None] | None = None,
) -> list[Answer | AgentFailure]:
    """Return answers or failures, in the order of `requests`; for `Agent.ask_all`.

    Args:
        ask: sends one request.
        requests: read as places become free; only `concurrency` of them are held at a time.
        concurrency: requests under way at a time.
        on_answer: called with index and result as each arrives.

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


def ask_each(agent: Agent, items: Sequence[Item], ask: Callable[[Item], Result]) -> list[Result | AgentFailure]:
    """Return `ask(item)` for every item, as many at once as the agent's limits allow; a failure stands in its place.

    After a failure that every further item would meet as well (budget, quota, key), it stands in place of the items that
    were not under way.
    """
    fatal: list[AgentFailure] = []

    def attempt(item: Item) -> Result | AgentFailure:
        if fatal:
            return fatal[0]
        try:
            return ask(item)
        except AgentFailure as failure:
            if failure.stops_everything:
                fatal.append(failure)
            return failure

    with ThreadPoolExecutor(agent.limits.concurrency) as pool:
        try:
            return list(pool.map(attempt, items))
        except KeyboardInterrupt:
            agent.abandon()
            raise


def for_each(agent: Agent, items: Sequence[Item], ask: Callable[[Item], Result]) -> list[Result | AgentFailure]:
    """Return what `ask_each` returns.

    Raises:
        AgentFailure: one that every further item would meet as well, when those under way have ended; their answers are on
            disk.
    """
    results = ask_each(agent, items, ask)
    for result in results:
        if isinstance(result, AgentFailure) and result.stops_everything:
            raise result
    return results


def ask_until_valid(
    agent: Agent,
    request: Request,
    broken_rule: Callable[[str], str | None],
    ask_again: Callable[[str], str],
    attempts: int,
) -> tuple[Answer | None, str, list[Answer]]:
    """Ask until the answer breaks no rule; each further turn names the rule that was broken.

    Args:
        agent: the model.
        request: the first question.
        broken_rule: returns the rule that an answer breaks, or None.
        ask_again: returns the text of the next turn, given the broken rule.
        attempts: requests in all.

    Returns:
        the valid answer (None if there was none), the rule that the last invalid one broke, and all answers.
    """
    answers: list[Answer] = []
    rule = ""
    for _ in range(attempts):
        answers.append(agent.ask(request))
        broken = broken_rule(answers[-1].text)
        if broken is None:
            return answers[-1], "", answers
        rule = broken
        turns = (*request.messages, Message.assistant(answers[-1].text or "..."), Message.user(ask_again(rule)))
        request = Request(turns, request.sampling, request.attempt)
    return None, rule, answers
