"""Does an agent ask only what it must, as fast as it may, for no more than it was given?"""

from __future__ import annotations

import asyncio
import json
import pickle
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from rehearsals import ROOT, Stand, compose_agents, texts
from tokenizers import Tokenizer

from dsd_lightning.agents import (
    Agent,
    BudgetExceeded,
    ConnectionFailed,
    Message,
    Picture,
    ProviderFailed,
    RateLimited,
    Request,
    Sampling,
)
from dsd_lightning.agents.budget import Budget
from dsd_lightning.agents.cache import AnswerCache
from dsd_lightning.agents.failures import failure_of_status, retry_after_of
from dsd_lightning.agents.limits import Limits
from dsd_lightning.agents.prices import Price, Prices, Size
from dsd_lightning.agents.provider import Reply
from dsd_lightning.agents.retries import Retries

PRICE = Price("stand-1", input_usd=100.0, output_usd=1000.0, picture_tokens=50, source="here", date="2026-01-01")
"""A call of 10 tokens in and 5 out costs 0.006 USD."""
CALL_USD = 0.006
ROUNDING = 1e-9
"""USD by which sums of the same numbers in another order may differ."""

TOKENIZER = Tokenizer.from_file(str(ROOT / "assets" / "tiny-flux" / "tokenizer" / "tokenizer.json"))


def agent_of(provider: Any, folder: Path, **parts: Any) -> Agent:
    defaults: dict[str, Any] = {
        "cache": AnswerCache(folder / "answers"),
        "limits": Limits(8),
        "retries": Retries(first_wait=0.01),
        "budget": Budget(None, folder / "spending.jsonl"),
        "prices": Prices([PRICE]),
        "sampling": Sampling(max_output_tokens=10),
        "timeout": 60.0,
    }
    return Agent(provider, **{**defaults, **parts})


def test_an_answer_is_asked_once_and_equal_requests_under_way_share_it(tmp_path: Path) -> None:
    async def slowly(text: str) -> str:
        await asyncio.sleep(0.1)
        return f"re {text}"

    stand = Stand(slowly)
    with agent_of(stand, tmp_path) as agent:
        assert texts(agent.ask_all([Request.of("a"), Request.of("b")] * 5)) == ["re a", "re b"] * 5
        assert sorted(stand.asked) == ["a", "b"]
    with agent_of(stand, tmp_path) as agent:
        answer = agent.ask(Request.of("a"))
    assert (answer.text, answer.cached, answer.cost_usd) == ("re a", True, pytest.approx(CALL_USD))
    assert len(stand.asked) == 2


def test_threads_and_event_loops_may_ask_one_agent(tmp_path: Path) -> None:
    with agent_of(Stand(str.upper), tmp_path) as agent:
        said: list[str] = []
        threads = [
            threading.Thread(target=lambda n=n: said.append(agent.ask(Request.of(f"t{n}")).text)) for n in range(6)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sorted(said) == [f"T{n}" for n in range(6)]
        assert asyncio.run(agent.ask_async(Request.of("loop"))).text == "LOOP"


def test_everything_that_determines_an_answer_is_in_its_key(tmp_path: Path) -> None:
    red, blue = (Picture.of(Image.new("RGB", (4, 4), colour)) for colour in ("red", "blue"))
    hot = Sampling(max_output_tokens=10, temperature=1.0)
    requests = [
        Request.of("a"),
        Request.of("b"),
        Request.of("a", system="s"),
        Request.of("a", red),
        Request.of(red, "a"),
        Request.of("a", blue),
        Request.of("a", attempt=1),
        Request((Message.user("a"),), hot),
        Request((Message.user("a"),), Sampling(max_output_tokens=11)),
        Request((Message.user("a"),), Sampling(max_output_tokens=10, extra={"reasoning_effort": "low"})),
        Request((Message.user("x"), Message.assistant("y"), Message.user("a"))),
    ]
    agent = agent_of(Stand(str.upper), tmp_path)
    other_model, other_host = Stand(str.upper), Stand(str.upper)
    other_model.model, other_host.identity = "stand-2", "elsewhere"
    others = [agent_of(other, tmp_path).key(requests[0]) for other in (other_model, other_host)]
    keys = [agent.key(request) for request in requests] + others
    assert len(set(keys)) == len(requests) + 2
    same = Picture.of(Image.new("RGB", (4, 4), "red"))
    assert agent.key(Request.of("a", same)) == agent.key(requests[3])


def test_a_record_tells_what_was_asked_and_a_damaged_one_is_asked_again(tmp_path: Path) -> None:
    stand = Stand(str.upper)
    picture = Picture.of(Image.new("RGB", (4, 4), "red"))
    with agent_of(stand, tmp_path) as agent:
        answer = agent.ask(Request.of("what?", picture))
        path = agent.cache.path(answer.key)
        record = json.loads(path.read_text())
        assert record["request"]["messages"] == [{"role": "user", "parts": ["what?", {"picture": picture.sha256}]}]
        assert record["answer"]["served_model"] == "stand-1-served"
        path.write_text(path.read_text()[:-20])
        assert agent.ask(Request.of("what?", picture)).cached is False
        assert len(stand.asked) == 2


def test_a_budget_is_never_crossed_however_many_ask_at_once_and_says_how_to_go_on(tmp_path: Path) -> None:
    async def slowly(text: str) -> str:
        await asyncio.sleep(0.01)
        return text

    stand = Stand(slowly)
    request_usd = Prices([PRICE]).cost("stand-1", Size(18, 10)) or 0.0  # two bytes and a message: 18 tokens at most
    budget_usd = 20 * CALL_USD + request_usd
    with agent_of(stand, tmp_path, budget=Budget(budget_usd, tmp_path / "spending.jsonl")) as agent:
        with pytest.raises(BudgetExceeded, match=r"raise agents\.budget\.budget_usd") as refusal:
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


@given(text=st.text(min_size=1, max_size=300))
def test_no_text_has_more_tokens_than_its_bound(text: str) -> None:
    bound = Prices([PRICE]).at_most("stand-1", [Message.user(text)], 10)
    assert len(TOKENIZER.encode(text, add_special_tokens=False).ids) <= bound.input_tokens


def test_a_dry_run_counts_calls_tokens_and_dollars_and_asks_nothing(tmp_path: Path) -> None:
    stand = Stand(str.upper)
    picture = Picture.of(Image.new("RGB", (4, 4), "red"))
    with agent_of(stand, tmp_path) as agent:
        agent.ask(Request.of("known"))
        estimate = agent.dry_run([Request.of("x" * 400, picture)] * 2 + [Request.of("known")], answer_tokens=4)
        assert len(stand.asked) == 1
    assert (estimate.calls, estimate.cached) == (1, 2)
    assert (estimate.input_tokens, estimate.output_tokens) == (100 + 50 + 16, 4)
    assert estimate.usd == pytest.approx((166 * 100 + 4 * 1000) / 1e6)
    assert estimate.usd_at_most == pytest.approx((466 * 100 + 10 * 1000) / 1e6)
    assert "1 calls (2 more are answered already)" in str(estimate)
    assert (estimate + estimate).calls == 2


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


def test_statuses_and_retry_after_are_read_as_http_means_them() -> None:
    kinds = {
        status: failure_of_status(status, "x") for status in (400, 401, 403, 404, 408, 409, 413, 422, 429, 500, 503)
    }
    assert [status for status, failure in kinds.items() if failure.retryable] == [408, 409, 429, 500, 503]
    assert [status for status, failure in kinds.items() if failure.stops_everything] == [401, 403]
    assert retry_after_of({"retry-after": "2.5"}) == 2.5
    assert retry_after_of({"retry-after": "Wed, 21 Oct 2015 07:28:00 GMT"}) == 0
    assert retry_after_of({"retry-after": "soon"}) is None
    assert retry_after_of({}) is None
    limited = failure_of_status(429, "x", 7.0)
    assert pickle.loads(pickle.dumps(limited)).retry_after == 7.0
    assert limited.after(3).retry_after == 7.0


def test_a_provider_that_counts_no_tokens_is_taken_at_the_bound(tmp_path: Path) -> None:
    with agent_of(Stand(lambda text: Reply(text, "length", "s", None, None)), tmp_path) as agent:
        answer = agent.ask(Request.of("a"))
    assert (answer.input_tokens, answer.output_tokens, answer.finish) == (17, 10, "length")


def test_requests_that_cannot_be_meant_are_refused() -> None:
    with pytest.raises(ValueError, match="must end with user"):
        Request((Message.user("a"), Message.assistant("b")))
    with pytest.raises(ValueError, match="only its first message may be system"):
        Request((Message.user("a"), Message.system("b"), Message.user("c")))
    with pytest.raises(ValueError, match="pictures go into user messages"):
        Message("assistant", (Picture.of(Image.new("RGB", (1, 1))),))
    with pytest.raises(ValueError, match="no png, jpg or webp"):
        Picture(b"GIF89a")
    with pytest.raises(ValueError, match="attempt=-1"):
        Request.of("a", attempt=-1)


WRONG = {
    "agents.budget.budget_usd=-1.0": "budget_usd=-1.0",
    "agents.llm.limits.concurrency=0": "limits.concurrency=0",
    "agents.llm.limits.requests_per_minute=0": "limits.requests_per_minute=0",
    "agents.llm.timeout=0.0": "timeout=0.0",
    "agents.llm.sampling.max_output_tokens=0": "sampling.max_output_tokens=0",
    "agents.llm.sampling.temperature=-1.0": "sampling.temperature=-1.0",
    "agents.llm.sampling.top_p=0.0": "sampling.top_p=0.0",
    "agents.retries.attempts=0": "retries.attempts=0",
    "agents.llm.provider.model=gpt-9": "gpt-9 has no price",
    "agents.llm.provider.base_url=nowhere": "provider.base_url='nowhere'",
    "agents.llm.provider.max_tokens_field=words": "max_tokens_field='words'",
}


@pytest.mark.parametrize("wrong", WRONG)
def test_a_wrong_value_is_refused_at_start_by_name(wrong: str, tmp_path: Path) -> None:
    from hydra.utils import instantiate

    from dsd_lightning.errors import message_for_user

    with pytest.raises(Exception) as refusal:  # noqa: PT011
        instantiate(compose_agents("openai", f"agents.folder={tmp_path}", wrong).agents.llm)
    assert WRONG[wrong] in str(message_for_user(refusal.value))
