"""An agent sends only requests it must, as fast as its limits allow, within its budget."""

from __future__ import annotations

import asyncio
import json
import pickle
import shlex
import threading
from datetime import date
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from support.llm.agent_parts import CALL_USD, PRICE, agent_of
from support.llm.rehearsals import ROOT, Stand, compose_agents, texts
from tokenizers import Tokenizer

from dsd_lightning.agents import (
    ImagePart,
    Message,
    Request,
    Sampling,
)
from dsd_lightning.agents.budget import Budget
from dsd_lightning.agents.failures import BudgetExceeded, failure_of_status, retry_after_of
from dsd_lightning.agents.prices import Prices, Size
from dsd_lightning.agents.providers.provider import Reply

TOKENIZER = Tokenizer.from_file(str(ROOT / "assets" / "tiny-flux" / "tokenizer" / "tokenizer.json"))


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
    red, blue = (ImagePart.of(Image.new("RGB", (4, 4), colour)) for colour in ("red", "blue"))
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
    same = ImagePart.of(Image.new("RGB", (4, 4), "red"))
    assert agent.key(Request.of("a", same)) == agent.key(requests[3])


def test_a_record_tells_what_was_asked_and_a_damaged_one_is_asked_again(tmp_path: Path) -> None:
    stand = Stand(str.upper)
    image = ImagePart.of(Image.new("RGB", (4, 4), "red"))
    with agent_of(stand, tmp_path) as agent:
        answer = agent.ask(Request.of("what?", image))
        path = agent.cache.path(answer.key)
        record = json.loads(path.read_text())
        assert record["request"]["messages"] == [{"role": "user", "parts": ["what?", {"image": image.sha256}]}]
        assert record["answer"]["served_model"] == "stand-1-served"
        path.write_text(path.read_text()[:-20])
        assert agent.ask(Request.of("what?", image)).cached is False
        assert len(stand.asked) == 2


@given(text=st.text(min_size=1, max_size=300))
def test_no_text_has_more_tokens_than_its_bound(text: str) -> None:
    bound = Prices([PRICE]).at_most("stand-1", [Message.user(text)], 10)
    assert len(TOKENIZER.encode(text, add_special_tokens=False).ids) <= bound.input_tokens


def test_a_dry_run_counts_calls_tokens_and_dollars_and_asks_nothing(tmp_path: Path) -> None:
    stand = Stand(str.upper)
    image = ImagePart.of(Image.new("RGB", (4, 4), "red"))
    with agent_of(stand, tmp_path) as agent:
        agent.ask(Request.of("known"))
        estimate = agent.dry_run([Request.of("x" * 400, image)] * 2 + [Request.of("known")], answer_tokens=4)
        assert len(stand.asked) == 1
    assert (estimate.calls, estimate.cached) == (1, 2)
    assert (estimate.input_tokens, estimate.output_tokens) == (100 + 50 + 16, 4)
    assert estimate.usd == pytest.approx((166 * 100 + 4 * 1000) / 1e6)
    assert estimate.usd_at_most == pytest.approx((466 * 100 + 10 * 1000) / 1e6)
    assert "1 calls (2 more are answered already)" in str(estimate)
    assert (estimate + estimate).calls == 2


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
    with pytest.raises(ValueError, match="images go into user messages"):
        Message("assistant", (ImagePart.of(Image.new("RGB", (1, 1))),))
    with pytest.raises(ValueError, match="no png, jpg or webp"):
        ImagePart(b"GIF89a")
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
    "agents.prices.given=[{model: gpt-9}]": "a price has model, input_usd and output_usd",
    "agents.prices.given=[{model: gpt-9, input_usd: INPUT_USD, output_usd: 1}]": "input_usd=INPUT_USD: give the number",
    "agents.prices.given=[5]": "5 is no price",
    "agents.llm.provider.base_url=nowhere": "provider.base_url='nowhere'",
    "agents.llm.provider.max_tokens_field=words": "max_tokens_field='words'",
}


@pytest.mark.parametrize("model", ["gpt-5.4-2026-03-05", "gpt-9", "vendor/Odd Name:7b-it"])
def test_the_hint_for_a_model_without_a_price_can_be_pasted(model: str, tmp_path: Path) -> None:
    from hydra.utils import instantiate

    from dsd_lightning.cli.errors import message_for_user

    chosen = [f"agents.folder={tmp_path}", f"agents.llm.provider.model='{model}'"]
    with pytest.raises(Exception, match="has no price") as refusal:
        instantiate(compose_agents("openai", *chosen).agents.llm)
    hint = next(
        word for word in shlex.split(str(message_for_user(refusal.value))) if word.startswith("agents.prices.given=")
    )
    has_price = model.startswith("gpt-5.4-")
    assert ("input_usd: 2.5, output_usd: 15.0" in hint) == has_price  # of the undated name, for the user to confirm
    pasted = hint.rstrip(",").replace("INPUT_USD", "2.5").replace("OUTPUT_USD", "15.0")
    for preset_of_model in ("openai", "openai_batch"):
        agent = instantiate(
            compose_agents("openai", f"agents/model@agents.llm={preset_of_model}", *chosen, pasted).agents.llm
        )
        share = 0.5 if preset_of_model == "openai_batch" else 1.0
        assert agent.prices.cost(model, Size(1_000_000, 1_000_000)) == pytest.approx(17.5 * share)


@pytest.mark.parametrize("preset", ["openai", "gemini", "gemini_legacy", "local"])
def test_servers_on_other_hosts_and_ports_have_answers_of_their_own(preset: str, tmp_path: Path) -> None:
    from hydra.utils import instantiate

    def key(place: str, *more: str) -> str:
        given = [
            f"agents.folder={tmp_path}",
            "agents.budget.budget_usd=null",
            f"agents.vlm.provider.base_url=http://{place}",
        ]
        config = compose_agents(preset, *given, "agents.vlm.provider.model=m", *more)
        with instantiate(config.agents.vlm) as agent:
            return str(agent.key(Request.of("a")))

    places = ("one:8000/v1", "one:8001/v1", "two:8000/v1")
    assert len({key(place) for place in places}) == 3
    assert len({key(place, "agents.vlm.provider.identity=mine") for place in places}) == 1


def test_shipped_prices_name_the_providers_page_and_the_date_it_was_read() -> None:
    pages = {
        "gpt": ("https://developers.openai.com/",),
        "gemini": ("https://ai.google.dev/", "https://cloud.google.com/"),
    }
    for price in compose_agents("openai").agents.prices.models:
        assert price.source.startswith(pages[price.model.partition("-")[0]]), price.model
        assert date.fromisoformat(price.date), price.model


def test_a_budget_of_null_still_counts(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    ledger = tmp_path / "ledger.jsonl"
    for prices, name in ((Prices([PRICE]), "priced"), (Prices([]), "unpriced")):
        agent = agent_of(Stand(str.upper), tmp_path / name, prices=prices, budget=Budget(None, ledger))
        with agent:
            before, tokens = agent.budget.spent_usd, agent.budget.tokens
            answer = agent.ask(Request.of("a"))
            assert agent.budget.spent_usd - before == pytest.approx(answer.cost_usd or 0.0)
            assert agent.budget.tokens - tokens == answer.input_tokens + answer.output_tokens
    assert Budget(None, ledger).spent_usd > 0
    assert "only the tokens of its calls are counted" in caplog.text
    with pytest.raises(BudgetExceeded, match=r"budget_usd=0\.0: "):
        Budget(0.0, ledger).reserve(0.1)


@pytest.mark.parametrize("wrong", WRONG)
def test_a_wrong_value_is_refused_at_start_by_name(wrong: str, tmp_path: Path) -> None:
    from hydra.utils import instantiate

    from dsd_lightning.cli.errors import message_for_user

    with pytest.raises(Exception) as refusal:  # noqa: PT011
        instantiate(compose_agents("openai", f"agents.folder={tmp_path}", wrong).agents.llm)
    assert WRONG[wrong] in str(message_for_user(refusal.value))
