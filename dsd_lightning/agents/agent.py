"""Calls a language model reliably: cache, limits, retries and budget around one provider.

    agent.ask(request)                 one answer
    agent.ask_all(requests)            many, as fast as the limits allow; agents.many for threads
    agent.converse(request, turns)     a conversation, each answer sent along with the next turn
    agent.dry_run(requests)            calls, tokens and dollars to expect; no call is made

All of these block, and may be called from any number of threads; `ask_async` and `converse_async` are for event loops.
Build one agent a process: it must not be carried over a fork.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from types import TracebackType
from typing import Any

from dsd_lightning.agents.budget import Budget, Reservation
from dsd_lightning.agents.cache import AnswerCache, described, key_of
from dsd_lightning.agents.estimate import Estimate
from dsd_lightning.agents.event_loop import EventLoop
from dsd_lightning.agents.failures import AgentFailure, ConnectionFailed, Refused
from dsd_lightning.agents.limits import Limits
from dsd_lightning.agents.many import ask_all
from dsd_lightning.agents.messages import Answer, Message, Request, Sampling
from dsd_lightning.agents.prices import Prices, Size
from dsd_lightning.agents.providers.provider import BatchProvider, Provider, Reply
from dsd_lightning.agents.retries import Retries

log = logging.getLogger(__name__)

_POLL, _LONGEST_POLL = 0.02, 2.0
"""Seconds between two looks whether calls under way have freed some of the budget; the wait doubles."""


class Agent:
    """One model, called within limits and a budget; every answer is stored.

    Args:
        provider: sends the requests.
        cache: stores the answers.
        limits: concurrency and rates.
        retries: when a request is sent again.
        budget: what may be spent.
        prices: what the model costs.
        sampling: for requests that bring none of their own.
        timeout: seconds for one attempt, from sending to the last byte of the answer.

    Raises:
        ValueError: a value that cannot be meant, such as a budget for a model without a price.
    """

    def __init__(
        self,
        provider: Provider,
        cache: AnswerCache,
        limits: Limits,
        retries: Retries,
        budget: Budget,
        prices: Prices,
        sampling: Sampling,
        timeout: float,
    ) -> None:
        if timeout <= 0:
            raise ValueError(f"timeout={timeout}: seconds for one attempt, must be > 0")
        if not prices.known(provider.model):
            remedy = (
                f"give it, in USD a million tokens, as {prices.override(provider.model)}, or agents.prices.free=true for a "
                "server of your own"
            )
            if budget.budget_usd is not None:
                raise ValueError(
                    f"budget_usd={budget.budget_usd}, but {prices.named(provider.model)} has no price to count by: {remedy}, "
                    "or count tokens alone, without a bound: agents.budget.budget_usd=null"
                )
            log.warning(
                "%s has no price, so that only the tokens of its calls are counted; %s",
                prices.named(provider.model),
                remedy,
            )
        self.provider = provider
        self.cache = cache
        self.limits = limits
        self.retries = retries
        self.budget = budget
        self.prices = prices
        self.sampling = sampling
        self.timeout = timeout
        # Every request under way may block a thread: reading files, or in a library without an event loop.
        self._loop = EventLoop(limits.concurrency + 4, provider.close)
        self._under_way: dict[str, asyncio.Task[tuple[dict[str, Any], bool]]] = {}

    @property
    def model(self) -> str:
        """Return the name of the model."""
        return self.provider.model

    def ask(self, request: Request) -> Answer:
        """Return the answer, from the cache if it is there.

        Raises:
            AgentFailure: of the kind that fits; `Refused` also when the refusal was remembered.
        """
        return self._loop.run(self._ask, request)

    async def ask_async(self, request: Request) -> Answer:
        """Return the answer, as `ask` does, without blocking the caller's event loop."""
        return await asyncio.wrap_future(self._loop.start(self._ask, request))

    def ask_all(
        self,
        requests: Iterable[Request],
        on_answer: Callable[[int, Answer | AgentFailure], None] | None = None,
    ) -> list[Answer | AgentFailure]:
        """Return answers or failures, in the order of `requests`, which are read as places become free.

        Args:
            requests: may be endless lines of a file: only `concurrency` of them are held at a time.
            on_answer: called with index and result as each arrives, in a thread of the agent; must not call the agent.

        Raises:
            AgentFailure: one that every further request would meet as well (budget, quota, key), as soon as those under
                way have ended. Their answers are on disk.
        """
        return self._loop.run(ask_all, self._ask, requests, self.limits.concurrency, on_answer)

    def converse(self, request: Request, turns: Sequence[Message]) -> list[Answer]:
        """Send `request`, then each of `turns` with everything before it; return all answers.

        The request's sampling and attempt hold for the whole conversation.

        Raises:
            AgentFailure: of the first turn that got no answer; the answers before it are on disk.
        """
        return self._loop.run(self._converse, request, turns)

    async def converse_async(self, request: Request, turns: Sequence[Message]) -> list[Answer]:
        """Hold a conversation, as `converse` does, without blocking the caller's event loop."""
        return await asyncio.wrap_future(self._loop.start(self._converse, request, turns))

    def dry_run(self, requests: Iterable[Request], answer_tokens: int | None = None) -> Estimate:
        """Return what `requests` would take; makes no call and needs no key.

        Args:
            requests: the requests. For a conversation, its turns with answers of the expected length put in.
            answer_tokens: expected length of an answer; None takes the longest that sampling allows.
        """
        seen: set[str] = set()
        total = Estimate(0, 0, 0, 0, 0.0, 0.0)
        for request in requests:
            sampling = request.sampling or self.sampling
            key = self.key(request)
            if key in seen or self.cache.path(key).exists():
                total += Estimate(0, 1, 0, 0, 0.0, 0.0)
                continue
            seen.add(key)
            expected = min(answer_tokens or sampling.max_output_tokens, sampling.max_output_tokens)
            size = self.prices.expected(self.model, request.messages, expected)
            bound = self.prices.at_most(self.model, request.messages, sampling.max_output_tokens)
            usd, usd_at_most = self.prices.cost(self.model, size), self.prices.cost(self.model, bound)
            total += Estimate(1, 0, size.input_tokens, size.output_tokens, usd, usd_at_most)
        return total

    def key(self, request: Request) -> str:
        """Return the cache key of a request: the digest of everything that determines its answer."""
        return key_of(self._described(request))

    def settings(self) -> dict[str, Any]:
        """Return what determines the answers beside the messages, as plain JSON."""
        return {"provider": self.provider.identity, "model": self.model, "sampling": self.sampling.described()}

    def abandon(self) -> None:
        """Stop waiting for batches, as after Ctrl-C: they go on, and a later run reads their answers."""
        if isinstance(self.provider, BatchProvider):
            self._loop.start(self._give_up).result()

    def close(self) -> None:
        """Close connections and threads; the agent can be used again afterwards."""
        self._loop.close()

    def __enter__(self) -> Agent:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _described(self, request: Request) -> dict[str, Any]:
        return described(self.provider.identity, self.model, request, request.sampling or self.sampling)

    async def _ask(self, request: Request) -> Answer:
        description = self._described(request)
        key = key_of(description)
        task = self._under_way.get(key)
        if task is None:
            task = asyncio.ensure_future(self._look_up_or_ask(key, request, description))
            self._under_way[key] = task
            task.add_done_callback(lambda _: self._under_way.pop(key, None))
        # A caller that gives up does not stop what is paid for from being kept.
        record, cached = await asyncio.shield(task)
        answer = Answer(**record["answer"], key=key, cached=cached)
        if answer.finish == "refused":
            raise Refused(f"{self.model} refused: {answer.text or 'no reason given'} (answer {key[:12]})")
        return answer

    async def _look_up_or_ask(
        self, key: str, request: Request, description: dict[str, Any]
    ) -> tuple[dict[str, Any], bool]:
        """Return the record of an answer, and whether it was on disk already."""
        record = await asyncio.to_thread(self.cache.get, key)
        if record is not None:
            return record, True
        attempts = 0
        try:
            async for attempt in self.retries.loop(key):
                with attempt:
                    attempts += 1
                    record = await self._attempt(key, request, {"request": description, "attempts": attempts})
        except AgentFailure as failure:
            raise (failure.after(attempts) if attempts > 1 else failure) from None
        assert record is not None  # the loop ends by an answer or by raising
        return record, False

    async def _attempt(self, key: str, request: Request, record: dict[str, Any]) -> dict[str, Any]:
        """Send once; add the answer to `record`, and store it before anything else can happen."""
        sampling = request.sampling or self.sampling
        bound = self.prices.at_most(self.model, request.messages, sampling.max_output_tokens)
        async with self.limits.slot(bound.input_tokens + bound.output_tokens) as slot:
            reservation = await self._reserve(key, self.prices.cost(self.model, bound) or 0.0)
            # What is not known to be free counts in full: the provider may have worked, and bill it.
            usd: float | None = reservation.usd
            used = bound
            try:
                async with asyncio.timeout(self.timeout):
                    reply = await self._send(key, request.messages, sampling)
                # A provider that does not report its tokens is counted at the bound.
                size = Size(
                    bound.input_tokens if reply.input_tokens is None else reply.input_tokens,
                    bound.output_tokens if reply.output_tokens is None else reply.output_tokens,
                )
                cost = self.prices.cost(self.model, size)
                usd, used, slot.tokens = cost or 0.0, size, size.input_tokens + size.output_tokens
                record["answer"] = self._answer(reply, size, cost)
                record["asked_at"] = datetime.now(UTC).isoformat(timespec="seconds")
                await asyncio.to_thread(self.cache.put, key, record)
            except AgentFailure as failure:
                if not failure.may_be_billed:
                    usd, used = 0.0, Size(0, 0)
                if failure.retry_after is not None and failure.retry_after <= self.retries.max_retry_after:
                    self.limits.pause(failure.retry_after)
                raise
            except TimeoutError:
                raise ConnectionFailed(
                    f"{self.provider.identity}: no complete answer within timeout={self.timeout} s"
                ) from None
            except asyncio.CancelledError:
                # What waits in a batch stays reserved, for the same request of a later run.
                usd = None if isinstance(self.provider, BatchProvider) else usd
                raise
            finally:
                if usd is not None:
                    self.budget.settle(reservation, usd, used.input_tokens + used.output_tokens)
        return record

    def _answer(self, reply: Reply, size: Size, cost: float | None) -> dict[str, Any]:
        content = {"text": reply.text, "finish": reply.finish, "model": self.model, "served_model": reply.served_model}
        image = {} if reply.image is None else {"image": reply.image}
        return {**content, **asdict(size), **image, "cost_usd": cost}

    async def _send(self, key: str, messages: Sequence[Message], sampling: Sampling) -> Reply:
        if isinstance(self.provider, BatchProvider):
            return await self.provider.send_as(key, messages, sampling)
        return await self.provider.send(messages, sampling, self.timeout)

    async def _reserve(self, key: str, usd: float) -> Reservation:
        # A batch outlives its process: what a killed one has set aside for a request is taken over, not set aside twice.
        name, wait = (key if isinstance(self.provider, BatchProvider) else None), _POLL
        while (reservation := self.budget.reserve(usd, name)) is None:
            await asyncio.sleep(wait)
            wait = min(2 * wait, _LONGEST_POLL)
        return reservation

    async def _give_up(self) -> None:
        tasks = list(self._under_way.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _converse(self, request: Request, turns: Sequence[Message]) -> list[Answer]:
        answers = [await self._ask(request)]
        messages = request.messages
        for turn in turns:
            messages = (*messages, Message.assistant(answers[-1].text), turn)
            answers.append(await self._ask(Request(messages, request.sampling, request.attempt)))
        return answers
