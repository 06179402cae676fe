"""Batches answer as single calls do, at half the price, and none is submitted twice, whatever is killed when."""

from __future__ import annotations

import sys
import time
from concurrent.futures import CancelledError, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image
from rehearsal_server import Asked, Fault, RehearsalServer
from support.commands import ROOT, environment
from support.llm.rehearsals import BATCHES, batching_agent, rehearsing_agent, texts
from support.processes import prepared

from dsd_lightning.agents import (
    AgentFailure,
    Answer,
    AuthenticationFailed,
    BudgetExceeded,
    ConnectionFailed,
    ImagePart,
    Message,
    ProviderFailed,
    QuotaExhausted,
    Refused,
    Request,
    RequestRejected,
)
from dsd_lightning.agents.batch.folder import Batch, BatchFolder
from dsd_lightning.agents.batch.gathering import Gathering

CANARY = "sk-canary-batch-0123456789"
IMAGES = [ImagePart.of(Image.new("RGB", (8, 6), colour)) for colour in ("red", "blue")]
COUNT = 5
QUESTIONS = [Request.of(f"question {number}") for number in range(COUNT)]
ANSWERS = [f"answer to question {number}" for number in range(COUNT)]


@pytest.fixture(autouse=True)
def key(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OPENAI_API_KEY", "GEMINI_API_KEY"):
        monkeypatch.setenv(name, CANARY)


@pytest.fixture(params=BATCHES)
def provider(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


def rule(asked: Asked) -> str | Fault:
    how, _, fault = asked.text.partition(" ")
    if how == "always" or (how == "once" and asked.repeat == 1):
        return Fault(fault)
    return f"answer to {asked.text}"


def test_many_questions_are_one_batch_at_half_the_price(provider: str, tmp_path: Path) -> None:
    with RehearsalServer(rule) as server:
        with batching_agent(provider, server.url, tmp_path / "batch") as agent:
            together = agent.ask_all(QUESTIONS)
            assert texts(together) == ANSWERS
            assert server.counts["batches"] == 1
            assert all(isinstance(each, Answer) and each.cached for each in agent.ask_all(QUESTIONS))
            spent = agent.budget.spent_usd
        with rehearsing_agent(provider.removesuffix("_batch"), server, tmp_path / "single") as agent:
            single = agent.ask_all(QUESTIONS)
            assert agent.budget.spent_usd == pytest.approx(2 * spent) != 0
        assert server.counts["batches"] == 1
    assert [each.key for each in together if isinstance(each, Answer)] == [
        each.key for each in single if isinstance(each, Answer)
    ]
    assert list((tmp_path / "batch" / "batches").iterdir()) == []


def test_conversations_take_a_batch_a_turn_and_carry_images(provider: str, tmp_path: Path) -> None:
    seen: list[Asked] = []

    def remember(asked: Asked) -> str | Fault:
        seen.append(asked)
        return rule(asked)

    with RehearsalServer(remember) as server, batching_agent(provider, server.url, tmp_path) as agent:
        openings = [Request.of(f"what is common, {number}?", *IMAGES) for number in range(3)]
        turns = [Message.user("describe both"), Message.user("identical?")]
        with ThreadPoolExecutor(3) as pool:
            answers = list(pool.map(lambda opening: agent.converse(opening, turns), openings))
        assert server.counts["batches"] == 3
    assert [[each.text for each in said][1:] for said in answers] == [
        ["answer to describe both", "answer to identical?"]
    ] * 3
    assert all(each.images == tuple(image.data for image in IMAGES) for each in seen)
    assert max(len(each.turns) for each in seen) == 5


def test_a_full_batch_is_submitted_and_the_next_begun(provider: str, tmp_path: Path) -> None:
    with RehearsalServer(rule) as server:
        for limit, batches in (("max_requests=2", 3), ("max_bytes=900", 3)):
            before = server.counts["batches"]
            with batching_agent(
                provider, server.url, tmp_path / limit.partition("=")[0], f"agents.vlm.provider.batches.{limit}"
            ) as agent:
                assert texts(agent.ask_all(QUESTIONS)) == ANSWERS
            assert server.counts["batches"] - before == batches


PASSING = ("rate_limited", "unavailable", "reset", "malformed")
LASTING: dict[str, type[AgentFailure]] = {
    "rejected": RequestRejected,
    "refusal": Refused,
    "unavailable": ProviderFailed,
    "reset": ProviderFailed,
    "malformed": ProviderFailed,
    "quota": QuotaExhausted,
    "unauthorized": AuthenticationFailed,
}


def test_failed_lines_are_asked_in_the_next_batch_and_the_others_are_not(provider: str, tmp_path: Path) -> None:
    asked = [*QUESTIONS, *(Request.of(f"once {fault}") for fault in PASSING)]
    with RehearsalServer(rule) as server, batching_agent(provider, server.url, tmp_path) as agent:
        assert texts(agent.ask_all(asked)) == [*ANSWERS, *(f"answer to once {fault}" for fault in PASSING)]
        counts = server.counts
    assert {each["text"]: each["asked"] for each in counts["requests"]} == {
        **{f"question {number}": 1 for number in range(COUNT)},
        **{f"once {fault}": 2 for fault in PASSING},
    }


def test_a_line_that_keeps_failing_fails_as_a_single_call_does(provider: str, tmp_path: Path) -> None:
    with (
        RehearsalServer(rule) as server,
        batching_agent(provider, server.url, tmp_path, "agents.vlm.retries.attempts=2") as agent,
        ThreadPoolExecutor(len(LASTING) + 1) as pool,
    ):
        asked = {fault: pool.submit(agent.ask, Request.of(f"always {fault}")) for fault in LASTING}
        beside = pool.submit(agent.ask, QUESTIONS[0])
        failures = {fault: answer.exception() for fault, answer in asked.items()}
        assert beside.result().text == ANSWERS[0]
        assert texts(agent.ask_all(QUESTIONS[1:2])) == ANSWERS[1:2]
    assert {fault: type(failure) for fault, failure in failures.items()} == LASTING
    assert not [failure for failure in failures.values() if CANARY in str(failure)]
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and CANARY.encode() in path.read_bytes()]


def test_a_server_that_is_not_there_is_a_connection_failure(provider: str, tmp_path: Path) -> None:
    with RehearsalServer(rule) as server:
        pass
    with (
        batching_agent(provider, server.url, tmp_path, "agents.vlm.retries.attempts=1") as agent,
        pytest.raises(ConnectionFailed, match=r"127\.0\.0\.1"),
    ):
        agent.ask(QUESTIONS[0])


def wait_for_id(folder: BatchFolder) -> Batch:
    """Return the batch under way, as soon as the provider's id of it is noted."""
    while not (noted := [batch for batch in folder.all() if batch.id is not None]):
        time.sleep(0.01)
    return noted[0]


@pytest.mark.slow
def test_a_kill_between_submitting_and_fetching_submits_nothing_twice(provider: str, tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "tests" / "support" / "llm" / "ask_batch.py")]
    with RehearsalServer(rule, latency=2.0) as server:
        process = prepared.start(
            [*command, provider, server.url, str(tmp_path), str(COUNT)],
            env=environment(PYTHONPATH=f"{ROOT}:{ROOT / 'tests'}"),
        )
        wait_for_id(BatchFolder(tmp_path / "batches"))
        process.kill()
        process.wait()
        with batching_agent(provider, server.url, tmp_path) as agent:
            reserved = agent.budget.spent_usd
            assert texts(agent.ask_all(QUESTIONS)) == ANSWERS
            assert (
                agent.budget.spent_usd < reserved
            )  # what the killed process had set aside was taken over, and settled
        assert server.counts["batches"] == 1
    assert BatchFolder(tmp_path / "batches").all() == []


@pytest.mark.parametrize(("submitted", "batches"), [(True, 1), (False, 2)])
def test_a_batch_whose_id_was_not_noted_is_found_by_its_name(
    submitted: bool, batches: int, provider: str, tmp_path: Path
) -> None:
    folder = BatchFolder(tmp_path / "batches")
    with RehearsalServer(rule, latency=1.0) as server:
        with batching_agent(provider, server.url, tmp_path) as agent, ThreadPoolExecutor(COUNT) as pool:
            waiting = [pool.submit(agent.ask, question) for question in QUESTIONS]
            batch = wait_for_id(folder)
            agent.abandon()
            for each in waiting:
                with pytest.raises(CancelledError):
                    each.result()
            reserved = agent.budget.spent_usd
        folder.remove(batch)
        folder.note(replace(batch, id=None, name=batch.name if submitted else "unknown to the provider"))
        with batching_agent(provider, server.url, tmp_path) as agent:
            assert texts(agent.ask_all(QUESTIONS)) == ANSWERS
            assert agent.budget.spent_usd < reserved  # what was set aside before was taken over, and settled
        assert server.counts["batches"] == batches
    assert folder.all() == []


def test_answers_that_were_fetched_and_not_taken_are_not_asked_again(provider: str, tmp_path: Path) -> None:
    with RehearsalServer(rule) as server:
        with batching_agent(provider, server.url, tmp_path) as agent:
            agent.ask_all(QUESTIONS[:1])
            [kept] = list((tmp_path / "answers").rglob("*.json"))
            [batch] = BatchFolder(tmp_path / "batches").all()
            files = {path: path.read_bytes() for path in (tmp_path / "batches").iterdir()}
        kept.unlink()  # as if killed before it was kept
        for path, content in files.items():
            path.write_bytes(content)
        with batching_agent(provider, server.url, tmp_path) as agent:
            assert texts(agent.ask_all(QUESTIONS[:1])) == ANSWERS[:1]
        assert (server.counts["batches"], server.counts["asked"]) == (1, 1)
    assert batch.id is not None


def test_what_the_budget_does_not_cover_waits_for_the_batch_before_it(provider: str, tmp_path: Path) -> None:
    small = ["agents.vlm.sampling.max_output_tokens=1000", "agents.budget.budget_usd=0.02"]
    with RehearsalServer(rule) as server, batching_agent(provider, server.url, tmp_path, *small) as agent:
        assert texts(agent.ask_all(QUESTIONS)) == ANSWERS
        assert 1 < server.counts["batches"] <= COUNT
        assert agent.budget.spent_usd < 0.02
        with pytest.raises(BudgetExceeded):
            agent.ask(Request.of("long " * 20_000))


def test_numbers_that_make_no_sense_are_refused() -> None:
    with pytest.raises(ValueError, match=r"provider\.batches\.poll=0: must be > 0"):
        Gathering("here", gather=1.0, poll=0, max_requests=1, max_bytes=1.0)
