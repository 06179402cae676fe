"""Budgets, limits a minute, waits, and refusals of values that make no sense."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.llm.agent_parts import CALL_USD, PRICE, agent_of
from support.llm.rehearsals import Stand

from dsd_lightning.agents import (
    BudgetExceeded,
    ConnectionFailed,
    ProviderFailed,
    RateLimited,
    Request,
)
from dsd_lightning.agents.budget import Budget
from dsd_lightning.agents.limits import Limits
from dsd_lightning.agents.prices import Prices, Size
from dsd_lightning.agents.retries import Retries

ROUNDING = 1e-9
"""USD by which sums of the same numbers in another order may differ."""


def test_a_budget_is_never_crossed_however_many_ask_at_once_and_says_how_to_go_on(tmp_path: Path) -> None:
    async def slowly(text: str) -> str:
        await asyncio.sleep(0.01)
        return text

    stand = Stand(slowly)
    request_usd = Prices([PRICE]).cost("stand-1", Size(18, 10)) or 0.0  # two bytes and a message: 18 tokens at most
    budget_usd = 20 * CALL_USD + request_usd
    with agent_of(stand, tmp_path, budget=Budget(budget_usd, tmp_path / "spending.jsonl")) as agent:
        with pytest.raises(BudgetExceeded, match=r"such as agents\.budget\.budget_usd=0\.27:") as refusal:
            agent.ask_all(Request.of(chr(200 + n)) for n in range(100))
        assert f"budget_usd={budget_usd}" in str(refusal.value)
        # The bound of a call is above its cost: the last one that fits is sent only when the others have settled.
        assert len(stand.asked) in (20, 21)
        assert agent.budget.spent_usd == pytest.approx(len(stand.asked) * CALL_USD)
        assert agent.budget.spent_usd <= budget_usd
    asked = len(stand.asked)
    with agent_of(stand, tmp_path, budget=Budget(1.0, tmp_path / "spending.jsonl")) as agent:
        agent.ask_all(Request.of(chr(200 + n)) for n in range(30))
    assert len(stand.asked) == max(30, asked)
    assert len(set(stand.asked)) == len(stand.asked)


@given(costs=st.lists(st.floats(0, 1), min_size=1, max_size=30), budget=st.floats(0, 5))
@settings(max_examples=50)
def test_reservations_and_settlements_never_cross_a_budget(costs: list[float], budget: float) -> None:
    purse = Budget(budget)
    waiting = []
    for cost in costs:
        try:
            reservation = purse.reserve(1.0)
        except BudgetExceeded:
            assert purse.spent_usd + 1.0 > budget - ROUNDING
            continue
        if reservation is None:
            assert waiting
            purse.settle(*waiting.pop())
        else:
            waiting.append((reservation, cost))
        assert purse.spent_usd <= budget + ROUNDING


def test_processes_share_a_ledger_and_what_was_never_settled_counts(tmp_path: Path) -> None:
    one, two = (Budget(1.0, tmp_path / "ledger") for _ in range(2))
    mine = one.reserve(0.6)
    assert mine is not None
    with pytest.raises(BudgetExceeded, match=r"0\.6000 USD set aside by calls that have not reported back"):
        two.reserve(0.5)
    one.settle(mine, 0.1)
    assert two.reserve(0.5) is not None
    assert one.spent_usd == two.spent_usd == pytest.approx(0.6)
    with (tmp_path / "ledger").open("ab") as stream:
        stream.write(b'{"call": "torn by a power cut')
    three = Budget(1.0, tmp_path / "ledger")
    assert three.spent_usd == pytest.approx(0.6)
    three.settle(three.reserve(0.2), 0.2)  # type: ignore[arg-type]
    assert Budget(None, tmp_path / "ledger").spent_usd == pytest.approx(0.8)


def test_an_attempt_that_may_be_billed_counts_in_full_and_one_that_failed_plainly_does_not(tmp_path: Path) -> None:
    for kind, calls in ((ConnectionFailed, 1), (ProviderFailed, 0)):
        failures = [kind("gone")]

        def answer(text: str, failures: list[Exception] = failures) -> str:
            if failures:
                raise failures.pop()
            return text

        with agent_of(Stand(answer), tmp_path / kind.__name__) as agent:
            agent.ask(Request.of("a"))
            bound = Prices([PRICE]).cost("stand-1", Size(17, 10)) or 0.0
            assert agent.budget.spent_usd == pytest.approx(CALL_USD + calls * bound)


class Clock:
    """Seconds that pass only when somebody sleeps."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now

    async def sleep(self, seconds: float) -> None:
        self.now += seconds
        await asyncio.sleep(0)


def started(limits: Limits, clock: Clock, tokens: list[int]) -> list[float]:
    """Return when each of many requests that wait at once was let through, in seconds."""
    times: list[float] = []

    async def one(size: int) -> None:
        async with limits.slot(size):
            times.append(clock.now - 1000.0)

    async def everything() -> None:
        await asyncio.gather(*(one(size) for size in tokens))

    asyncio.run(everything())
    return times


@given(sizes=st.lists(st.integers(1, 100), min_size=1, max_size=30))
@settings(max_examples=20)
def test_no_minute_has_more_requests_or_tokens_than_allowed(sizes: list[int]) -> None:
    clock = Clock()
    times = started(Limits(100, 7, 200, clock=clock, sleep=clock.sleep), clock, sizes)
    assert len(times) == len(sizes)
    for start in times:
        window = [size for time_, size in zip(times, sizes, strict=True) if start <= time_ < start + 59.999]
        assert len(window) <= 7
        assert sum(window) <= 200


def test_limits_cost_no_more_time_than_they_must() -> None:
    clock = Clock()
    assert started(Limits(100, 10, clock=clock, sleep=clock.sleep), clock, [1] * 25) == [0] * 10 + [60] * 10 + [120] * 5
    with pytest.raises(ValueError, match=r"can never pass limits\.tokens_per_minute=5"):
        started(Limits(1, None, 5), clock, [6])


def test_tokens_are_counted_as_they_turn_out() -> None:
    clock = Clock()

    async def both() -> float:
        limits = Limits(1, None, 100, clock=clock, sleep=clock.sleep)
        async with limits.slot(90) as slot:
            slot.tokens = 10
        async with limits.slot(90):
            return clock.now - 1000.0

    assert asyncio.run(both()) == 0


def test_a_wait_that_the_provider_asks_for_holds_everybody(tmp_path: Path) -> None:
    failure = RateLimited("wait")
    failure.retry_after = 0.4
    times: list[tuple[str, float]] = []
    begun = time.monotonic()

    def answer(text: str) -> str:
        times.append((text, time.monotonic() - begun))
        if len(times) == 1:
            raise failure
        return text

    with agent_of(Stand(answer), tmp_path, limits=Limits(1)) as agent:
        agent.ask_all([Request.of("a"), Request.of("b"), Request.of("c")])
    assert sorted(text for text, _ in times) == ["a", "a", "b", "c"]
    assert min(seconds for _, seconds in times[1:]) >= 0.4


def test_concurrency_is_reached_and_never_exceeded(tmp_path: Path) -> None:
    now, most = 0, 0
    reached = asyncio.Event()

    async def answer(text: str) -> str:
        nonlocal now, most
        now += 1
        most = max(most, now)
        if now == 5:
            reached.set()
        await reached.wait()  # the first ones, for the fifth
        await asyncio.sleep(0.001)
        now -= 1
        return text

    with agent_of(Stand(answer), tmp_path, limits=Limits(5)) as agent:
        agent.ask_all(Request.of(str(n)) for n in range(30))
    assert most == 5


def test_waits_grow_are_bounded_and_obey_the_provider() -> None:
    retries = Retries(first_wait=1.0, max_wait=8.0, max_retry_after=100.0)
    waits = [retries.wait(attempt, ProviderFailed("x"), "key") for attempt in range(1, 8)]
    for attempt, wait in enumerate(waits):
        assert 0.75 * min(8, 2**attempt) <= wait <= min(8, 2**attempt)
    assert retries.wait(1, ProviderFailed("x"), "another") != waits[0]
    limited = RateLimited("x")
    limited.retry_after = 30.0
    assert retries.wait(1, limited, "key") == 30.0
    assert retries.worth_it(limited)
    limited.retry_after = 101.0
    assert not retries.worth_it(limited)
