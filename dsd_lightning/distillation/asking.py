"""How do stages ask a model about many records at once? In threads; a failure stays with its record."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from dsd_lightning.agents import Agent, AgentFailure, Answer, Message, Request

Item = TypeVar("Item")
Result = TypeVar("Result")


def described(agent: Agent) -> dict[str, Any]:
    """Return what of an agent decides its answers, plain JSON."""
    return {
        "provider": agent.provider.identity,
        "model": agent.model,
        "sampling": agent.sampling.described(),
    }


def for_each(agent: Agent, items: Sequence[Item], ask: Callable[[Item], Result]) -> list[Result | AgentFailure]:
    """Return `ask(item)` for every item, as many at once as the agent's limits allow; a failure stands in its place.

    Raises:
        AgentFailure: one that every further item would meet as well (budget, quota, key), when those under way have
            ended; what they were answered is on disk.
    """
    stopped: list[AgentFailure] = []

    def attempt(item: Item) -> Result | AgentFailure:
        if stopped:
            return stopped[0]
        try:
            return ask(item)
        except AgentFailure as failure:
            if failure.stops_everything:
                stopped.append(failure)
            return failure

    with ThreadPoolExecutor(agent.limits.concurrency) as pool:
        try:
            results = list(pool.map(attempt, items))
        except KeyboardInterrupt:
            agent.abandon()
            raise
    if stopped:
        raise stopped[0]
    return results


def until_kept(
    agent: Agent, request: Request, broken: Callable[[str], str | None], again: Callable[[str], str], attempts: int
) -> tuple[Answer | None, str, list[Answer]]:
    """Ask until the answer breaks no rule, telling the model each time which one it broke.

    Args:
        agent: who is asked.
        request: the first question.
        broken: returns the rule that an answer breaks, or None.
        again: the words to ask again with, given the broken rule.
        attempts: askings in all.

    Returns:
        the answer that keeps all rules (None if none did), the rule that the last one broke, and all answers.
    """
    answers: list[Answer] = []
    rule = ""
    for _ in range(attempts):
        answers.append(agent.ask(request))
        problem = broken(answers[-1].text)
        if problem is None:
            return answers[-1], "", answers
        rule = problem
        turns = (*request.messages, Message.assistant(answers[-1].text or "..."), Message.user(again(problem)))
        request = Request(turns, request.sampling, request.attempt)
    return None, rule, answers
