"""Shows that every question is judged once, in the right turns and order, through kills and failures of every kind."""

from __future__ import annotations

import base64
import io
import json
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from PIL import Image
from rehearsal_server import Asked, Fault, RehearsalServer
from support.commands import environment
from support.llm.agent_parts import agent_of
from support.llm.judge_images import judge
from support.llm.rehearsals import ROOT
from support.processes import prepared

from dsd_lightning.agents import QuotaExhausted, Sampling
from dsd_lightning.agents.failures import AgentFailure, AuthenticationFailed
from dsd_lightning.agents.providers.openai_chat import OpenAIChat
from dsd_lightning.evaluation.errors import CoverageTooLow, EvaluationError
from dsd_lightning.evaluation.judging import judgements as judgements_module
from dsd_lightning.evaluation.judging.judgements import RETRIED, Judgement, Record
from dsd_lightning.evaluation.judging.replies import Unscored
from dsd_lightning.evaluation.judging.rubrics import SHIPPED, Rubrics
from dsd_lightning.evaluation.judging.run import Judging
from dsd_lightning.evaluation.samples.benchmark import Case, Prompt, Subject, folder
from dsd_lightning.evaluation.samples.result_folder import Samples, save_jpeg
from dsd_lightning.evaluation.scores.comparison import compare
from dsd_lightning.evaluation.scores.estimates import collect
from dsd_lightning.evaluation.scores.formats import to_csv

SUBJECTS, PROMPTS = 2, 3
QUESTIONS = SUBJECTS * PROMPTS * 4


def image(*color: int) -> Image.Image:
    return Image.new("RGB", (16, 16), color)


@pytest.fixture
def world(tmp_path: Path) -> Path:
    """Return a folder with a benchmark of two subjects and a method's images, all different."""
    for number in range(SUBJECTS):
        file = tmp_path / "benchmark" / f"{number}.png"
        file.parent.mkdir(exist_ok=True)
        image(255, 40 * number, 0).save(file)
        file.with_suffix(".txt").write_text("\n".join(f"prompt {number} {each}" for each in range(PROMPTS)))
    samples = Samples(tmp_path / "samples", "method")
    for case in folder(tmp_path / "benchmark").cases():
        samples.write(case, image(0, 40 * int(case.subject.name), 60 * case.prompt.index), image(255, 0, 0))
    return tmp_path


def by_digest(asked: Asked) -> str:
    return f"Analysis: none.\nScore: {int(asked.digest, 16) % 5}"


def test_every_question_is_judged_once_in_the_papers_turns_and_order(world: Path) -> None:
    requests: list[Asked] = []

    def rule(asked: Asked) -> str:
        requests.append(asked)
        return by_digest(asked)

    with RehearsalServer(rule) as server:
        first = judge(server.url, world)
        assert judge(server.url, world) == first
        assert server.counts["asked"] == QUESTIONS
    red = []
    for asked in requests:
        assert [role for role, _ in asked.turns] == ["user", "assistant", "user"]
        red.append(tuple(_is_red(data) for data in asked.images))
        debiased = "copying" in asked.turns[0][1]
        if "prompt" not in asked.text:
            assert asked.text == ""
            assert red[-1] == (True, False)  # the reference first
        else:
            assert red[-1] == ((False, True) if debiased else (False,))
    assert Counter(red) == {(True, False): 12, (False, True): 6, (False,): 6}
    lines = [json.loads(line) for line in (world / "judgements.jsonl").read_text().splitlines()]
    assert len(lines) == QUESTIONS
    assert all(
        line["score"] is not None and line["image"] and line["rubric"] and line["served"] and line["reply"]
        for line in lines
    )


def _is_red(data: bytes) -> bool:
    red, _, _ = Image.open(io.BytesIO(data)).convert("RGB").getpixel((8, 8))  # type: ignore[misc]
    return bool(red > 128)


@pytest.mark.long
def test_a_killed_run_repeats_no_call_and_ends_with_the_same_metrics(world: Path) -> None:
    with RehearsalServer(by_digest) as server:
        uninterrupted = judge(server.url, world)
    (world / "judgements.jsonl").unlink()
    (world / "answers").rename(world / "answers before")
    with RehearsalServer(by_digest, latency=0.1) as server:
        command = [sys.executable, str(ROOT / "tests" / "support" / "llm" / "judge_images.py"), server.url, str(world)]
        setting = environment(PYTHONPATH=f"{ROOT}:{ROOT / 'tests'}")
        for wanted in (4, 12):
            process = prepared.start(command, env=setting, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            deadline = time.monotonic() + 300
            while server.counts["answered"] < wanted and process.poll() is None and time.monotonic() < deadline:
                time.sleep(0.02)
            process.send_signal(signal.SIGKILL)
            process.wait()
        assert 12 <= server.counts["answered"] < QUESTIONS
        with (world / "judgements.jsonl").open("a") as file:
            file.write('{"method": "method", "subj')  # as a power cut may leave it
        last = prepared.run(command, env=setting)
        counts = server.counts
    assert last.stdout == uninterrupted, last.stderr
    assert len(counts["requests"]) == QUESTIONS
    # Only what was on the wire at a kill, at most the four under way, may come twice.
    assert counts["asked"] <= QUESTIONS + 2 * 4


STOPS = {"quota": QuotaExhausted, "unauthorized": AuthenticationFailed}


@pytest.mark.parametrize("fault", STOPS)
def test_quota_and_key_stop_the_run_by_name_and_nothing_is_lost(fault: str, world: Path) -> None:
    def rule(asked: Asked) -> str | Fault:
        return Fault(fault) if asked.number > 10 else by_digest(asked)

    with RehearsalServer(rule) as server, pytest.raises(AgentFailure, match=f"api:{STOPS[fault].__name__}"):
        judge(server.url, world, concurrency=1)
    assert len(Record(world / "judgements.jsonl").read()) == 10
    with RehearsalServer(by_digest) as server:
        judge(server.url, world)
        assert server.counts["asked"] == QUESTIONS - 10


SETUPS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "image_side": ({"image_side": 48}, {}),
    "jpeg_quality": ({"jpeg_quality": 30}, {}),
    "temperature": ({}, {"temperature": 0.5}),
    "top_p": ({}, {"top_p": 0.5}),
    "seed": ({}, {"seed": 1}),
    "max_output_tokens": ({}, {"max_output_tokens": 50}),
    "extra": ({}, {"extra": {"reasoning_effort": "low"}}),
    "the protocol's sampling": ({"sampling": {"image_detail": "high"}}, {}),
}


@pytest.mark.parametrize("setting", SETUPS)
def test_what_changes_an_answer_makes_new_judgements(setting: str, world: Path) -> None:
    protocol, sampling = SETUPS[setting]
    with RehearsalServer(by_digest) as server:
        judge(server.url, world)
        judge(server.url, world, protocol=protocol, sampling=sampling)
        assert server.counts["asked"] == 2 * QUESTIONS
    record = list(Record(world / "judgements.jsonl").read().values())
    assert len({each.setup for each in record}) == 2
    with pytest.raises(EvaluationError, match="several setups"):
        collect(record, "sample")
    rows = [collect((each for each in record if each.setup == setup), "sample") for setup in {e.setup for e in record}]
    with pytest.raises(EvaluationError, match="different protocols"):
        compare(*rows)


def test_rejections_in_a_row_stop_the_run_and_are_asked_again_when_asked_to(world: Path) -> None:
    with (
        RehearsalServer(lambda _: Fault("rejected")) as server,
        pytest.raises(AgentFailure, match=r"retry=\[rejected\]"),
    ):
        judge(server.url, world, concurrency=1)
    assert server.counts["asked"] == 3
    with RehearsalServer(by_digest) as server:
        judge(server.url, world)
        assert server.counts["asked"] == QUESTIONS - 3
        judge(server.url, world, retry="rejected,unparsable")
        assert server.counts["asked"] == QUESTIONS
    assert all(each.score is not None for each in Record(world / "judgements.jsonl").latest())


def test_single_rejections_do_not_stop_the_run(world: Path) -> None:
    with RehearsalServer(lambda asked: Fault("rejected") if asked.number % 3 else by_digest(asked)) as server:
        with pytest.raises(CoverageTooLow):
            judge(server.url, world, concurrency=1)
        assert server.counts["asked"] == QUESTIONS


def test_unparsable_replies_are_parsed_again_and_asked_again_when_asked_to(
    world: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as before, RehearsalServer(by_digest) as server:
        before.setattr(judgements_module, "parse", lambda reply: Unscored("no_score"))
        with pytest.raises(CoverageTooLow):
            judge(server.url, world)
    assert all(each.score is not None for each in Record(world / "judgements.jsonl").read().values())
    (world / "judgements.jsonl").unlink()
    with RehearsalServer(lambda asked: "no idea") as server, pytest.raises(CoverageTooLow):
        judge(server.url, world, sampling={"seed": 1})
    for _ in range(2):
        with RehearsalServer(lambda asked: "still none") as server, pytest.raises(CoverageTooLow):
            judge(server.url, world, sampling={"seed": 1}, retry=["unparsable"])
        assert server.counts["asked"] == QUESTIONS
    for wrong in (["all"], "all"):
        with pytest.raises(EvaluationError, match=r"retry=\[all\]: 'all' is unknown; choose of rejected"):
            judge("http://127.0.0.1:1", world, retry=wrong)


FAILING: dict[str, tuple[str | Fault, str]] = {
    "a filter": (Fault("refusal"), "refused"),
    "words of refusal": ("I'm sorry, I can't help with that.", "refused"),
    "nonsense": (Fault("nonsense"), "unparsable:no_score"),
    "two scores": ("Score: 1\nScore: 4", "unparsable:several_scores"),
    "rate limit": (Fault("rate_limited", retry_after=0.01), "api:RateLimited"),
    "server error": (Fault("unavailable"), "api:ProviderFailed"),
    "broken protocol": (Fault("malformed"), "api:ProviderFailed"),
}


@pytest.mark.parametrize("name", FAILING)
def test_failures_are_kinds_of_their_own_and_make_no_table(name: str, world: Path) -> None:
    answer, kind = FAILING[name]
    word = kind.partition(":")[0]
    remedy = "run the same command again" + (rf" with retry=\[{word}\]" if word in RETRIED else "$")
    with RehearsalServer(lambda _: answer) as server, pytest.raises(CoverageTooLow, match=f"{kind}.*{remedy}"):
        judge(server.url, world)
    judgements = Record(world / "judgements.jsonl").read().values()
    assert {(each.failure, each.score) for each in judgements} == {(kind, None)}
    # Only failures that may pass by themselves are judged again.
    again = kind in ("api:RateLimited", "api:ProviderFailed")
    with RehearsalServer(by_digest) as server:
        if again:
            judge(server.url, world)
        else:
            with pytest.raises(CoverageTooLow):
                judge(server.url, world)
        assert server.counts["asked"] == (QUESTIONS if again else 0)


def test_missing_and_unreadable_images_are_missing_judgements(world: Path) -> None:
    (world / "samples" / "tgt_image" / "0" / "0_0.jpg").unlink()
    (world / "samples" / "tgt_image" / "1" / "0_0.jpg").write_bytes(b"no image")
    with RehearsalServer(by_digest) as server:
        metrics = judge(server.url, world)
        assert server.counts["asked"] == QUESTIONS - 8
    assert next(line for line in metrics.splitlines() if line.startswith("method,cp,")).split(",")[5:9] == [
        "2",
        "4",
        "4",
        "2",
    ]


def test_an_incomplete_record_makes_no_table_and_a_changed_image_replaces_its_judgements(world: Path) -> None:
    record = Record(world / "judgements.jsonl")

    def rule(asked: Asked) -> str | Fault:
        return by_digest(asked) if asked.number <= 10 else Fault("quota")

    with RehearsalServer(rule) as server, pytest.raises(AgentFailure):
        judge(server.url, world, concurrency=1)
    with pytest.raises(EvaluationError, match="10 of 24"):
        record.latest()
    with RehearsalServer(by_digest) as server:
        judge(server.url, world)
        assert len(record.latest()) == QUESTIONS
        before = server.counts["asked"]
        save_jpeg(image(200, 100, 50), world / "samples" / "tgt_image" / "0" / "0_0.jpg")
        judge(server.url, world)
        assert server.counts["asked"] == before + 4
    assert len(record.read()) == QUESTIONS + 4
    assert len(record.latest()) == QUESTIONS


def test_a_table_is_of_the_last_command_whatever_settings_came_before(world: Path) -> None:
    record = Record(world / "judgements.jsonl")
    with RehearsalServer(by_digest) as server:
        first = judge(server.url, world)
        other = judge(server.url, world, sampling={"temperature": 0.5}, measures=("cp",))
        assert to_csv([collect(record.latest(), "sample")]) == other
        asked = server.counts["asked"]
        judge(server.url, world)
        assert server.counts["asked"] == asked
        assert to_csv([collect(record.latest(), "sample")]) == first


def test_models_of_one_name_on_two_servers_are_not_mixed(world: Path) -> None:
    record = Record(world / "judgements.jsonl")
    for _ in range(2):
        with RehearsalServer(by_digest) as server:
            judge(server.url, world, identity=None)
            assert server.counts["asked"] == QUESTIONS
    judged = list(record.read().values())
    providers = sorted({each.provider for each in judged})
    assert [name.partition(":")[0] for name in providers] == ["openai@127.0.0.1"] * 2
    with pytest.raises(EvaluationError, match=" and ".join(providers)):
        collect(judged, "sample")
    rows = [collect((each for each in judged if each.provider == name), "sample") for name in providers]
    with pytest.raises(EvaluationError, match="rows of different judges"):
        compare(*rows)


def test_a_folder_of_rubrics_replaces_the_shipped_ones_and_changes_their_hash(tmp_path: Path) -> None:
    case = Case(Subject("a", "animal", tmp_path / "a.png", ()), Prompt(0, "text", "prompt"))
    style = Case(Subject("a", "style", tmp_path / "a.png", ()), Prompt(0, "text", "prompt"))
    for file in SHIPPED.glob("*.txt"):
        (tmp_path / file.name).write_text(file.read_text())
    assert (
        Rubrics(tmp_path).of("cp", case).sha256 == Rubrics().of("cp", case).sha256 != Rubrics().of("cp", style).sha256
    )
    (tmp_path / "concept_preservation.txt").write_text("other words")
    assert Rubrics(tmp_path).of("cp", case).sha256 != Rubrics().of("cp", case).sha256
    (tmp_path / "prompt_following.txt").unlink()
    with pytest.raises(EvaluationError, match=r"prompt_following\.txt is missing"):
        Rubrics(tmp_path)


def test_records_of_a_question_are_replaced_by_later_ones(tmp_path: Path) -> None:
    one = Judgement("m", "s", "c", 0, "k", 0, "cp", 0, "i", "r", "t", "h", "j", failure="api:RateLimited")
    with Record(tmp_path / "a.jsonl") as record:
        record.append(one)
        record.append(Judgement(*list(one.__dict__.values())[:13], served="j", score=3))
    (only,) = Record(tmp_path / "a.jsonl").read().values()
    assert (only.score, only.failure) == (3, None)


def test_a_reply_without_a_score_is_asked_again_within_the_protocols_attempts(world: Path) -> None:
    asked: Counter[str] = Counter()

    def rule(request: Asked) -> str:
        question = "".join(text for _, text in request.turns) + str([hash(data) for data in request.images])
        asked[question] += 1
        return "Score: 3" if asked[question] == 2 else "no idea"

    with RehearsalServer(rule) as server:
        judge(server.url, world, protocol={"attempts": 3})
        assert server.counts["asked"] == 2 * QUESTIONS
        judge(server.url, world, protocol={"attempts": 3})
        assert server.counts["asked"] == 2 * QUESTIONS
    with RehearsalServer(lambda _: "never") as server:
        with pytest.raises(CoverageTooLow):
            judge(server.url, world, protocol={"attempts": 3}, sampling={"seed": 1})
        assert server.counts["asked"] == 3 * QUESTIONS
        with pytest.raises(CoverageTooLow):
            judge(server.url, world, protocol={"attempts": 3}, sampling={"seed": 1})
        assert server.counts["asked"] == 3 * QUESTIONS


def test_dreambenchpps_preset_sends_what_its_code_sends(tmp_path: Path) -> None:
    """Its code: eval_concept_preservation.py and eval_prompt_following.py, stated here independently."""
    prompts = tmp_path / "dreambench_plus" / "prompts"
    prompts.mkdir(parents=True)
    for name in ("subject", "style", "text"):
        (prompts / f"user_prompt_{name}_full.txt").write_text(f"\nrate the {name}\n\n")
        (prompts / f"gpt_prompt_{name}_full.txt").write_text(f"I rate the {name}\n")
    for category in ("object", "style"):
        for kind, ending in (("images", "jpg"), ("captions", "txt")):
            (tmp_path / "data" / kind / category).mkdir(parents=True)
            file = tmp_path / "data" / kind / category / f"00.{ending}"
            if kind == "images":
                Image.effect_noise((90, 60), 50).convert("RGB").save(file)
            else:
                file.write_text("cup\non the moon\n")
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        overrides = ["protocol=dreambenchpp", "benchmark=dreambenchpp", f"benchmark.folder={tmp_path}", "out=x"]
        config = compose("evaluate", overrides)
    protocol = instantiate(config.protocol)
    cases = instantiate(config.benchmark).cases(config.copies)
    samples = Samples(tmp_path / "samples", "method")
    for number, case in enumerate(cases):
        samples.write(case, image(9, 90 * number, 9), image(255, 0, 0))
    provider = OpenAIChat("gpt", "http://127.0.0.1/v1", None)
    agent = agent_of(provider, tmp_path, sampling=Sampling(100))
    judging = Judging(agent, Rubrics(config.rubrics, ("cp", "pf")), protocol, Record(tmp_path / "r"))
    requests = [judging.request(*each) for each in judging.open_questions(samples, cases)[1]]
    assert len(requests) == 2 * 2 * 3
    assert len({request.attempt for request in requests}) == 3
    for case, sent in zip(cases, (requests[:6], requests[6:]), strict=True):
        name = case.subject.category if case.subject.category == "style" else "subject"
        generated = samples.image(case)
        assert generated is not None
        for request, shown in ((sent[0], [case.subject.reference, generated]), (sent[3], [generated])):
            body = provider._body(request.messages, request.sampling or agent.sampling)
            assert body["temperature"] == 1
            user, assistant, last = body["messages"]
            rubric = name if len(shown) == 2 else "text"
            assert user == {"role": "user", "content": [{"type": "text", "text": f"rate the {rubric}"}]}
            assert assistant == {"role": "assistant", "content": f"I rate the {rubric}"}
            text = [] if len(shown) == 2 else [{"type": "text", "text": "on the moon"}]
            assert last == {"role": "user", "content": text + [_as_published(file) for file in shown]}


def _as_published(file: Path) -> dict[str, Any]:
    buffer = io.BytesIO()
    Image.open(file).convert("RGB").resize((512, 512)).save(buffer, format="JPEG")
    url = f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}"
    return {"type": "image_url", "image_url": {"url": url, "detail": "high"}}
