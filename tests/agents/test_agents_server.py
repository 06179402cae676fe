"""The rehearsal server follows its script, and a run that is killed through it repeats no API call."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import pytest
from rehearsal_server import Asked, Fault, RehearsalServer, Script, load_script
from support.commands import environment
from support.llm.rehearsals import ROOT
from support.processes import prepared

SCRIPT = """
answers:
  - {match: "identical", say: ["yes", "no"]}
  - {say: "a grid of four"}
faults:
  - {fault: unavailable, first: 1, match: "once"}
  - {fault: rate_limited, retry_after: 2.5, every: 5}
"""


def asked(text: str, number: int = 1, repeat: int = 1, digest: str = "0") -> Asked:
    return Asked("openai", "m", (("user", text),), (), digest, number, repeat)


def test_a_script_meets_its_faults_first_and_answers_equal_requests_alike(tmp_path: Path) -> None:
    (tmp_path / "script.yaml").write_text(SCRIPT)
    rule = load_script(str(tmp_path / "script.yaml"))
    assert rule(asked("a cat")) == "a grid of four"
    assert [rule(asked("identical?", digest=digest)) for digest in "0101"] == ["yes", "no", "yes", "no"]
    assert rule(asked("once", repeat=1)) == Fault("unavailable", match="once", first=1)
    assert rule(asked("once", repeat=2)) == "a grid of four"
    assert rule(asked("a cat", number=10)) == Fault("rate_limited", every=5, retry_after=2.5)
    assert Script([{"match": "cat", "say": "a cat"}])(asked("a dog")) == Fault("rejected")


def test_a_python_callable_is_a_script(tmp_path: Path) -> None:
    (tmp_path / "rules.py").write_text("def answer(asked):\n    return asked.text.upper()\n")
    assert load_script(f"{tmp_path}/rules.py:answer")(asked("hello")) == "HELLO"
    assert load_script("builtins:repr")(asked("hello")).startswith("Asked(")  # type: ignore[union-attr]


WRONG = {
    "answers: [{say: x, when: y}]": "'when'",
    "answers: [{match: x}]": "needs `say`",
    "faults: [{fault: earthquake}]": "earthquake",
    "replies: []": "'replies'",
}


@pytest.mark.parametrize("wrong", WRONG)
def test_a_script_with_a_mistake_is_refused_by_name(wrong: str, tmp_path: Path) -> None:
    (tmp_path / "script.yaml").write_text(wrong)
    with pytest.raises(ValueError, match=WRONG[wrong]):
        load_script(str(tmp_path / "script.yaml"))


def test_what_names_no_script_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        load_script(str(tmp_path / "absent.yaml"))
    with pytest.raises(FileNotFoundError, match=r"absent\.py"):
        load_script(f"{tmp_path}/absent.py:answer")
    with pytest.raises(ValueError, match="give FILE"):
        load_script("answer")
    with pytest.raises(ValueError, match="has no function nothing"):
        load_script("builtins:nothing")


def post(url: str, body: dict[str, Any]) -> dict[str, Any]:
    request = urllib.request.Request(url, json.dumps(body).encode(), {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=10) as response:
        answer: dict[str, Any] = json.loads(response.read())
    return answer


def counts(url: str) -> dict[str, Any]:
    with urllib.request.urlopen(f"{url}/counts", timeout=10) as response:
        answer: dict[str, Any] = json.loads(response.read())
    return answer


def test_the_command_serves_both_protocols_and_counts(tmp_path: Path) -> None:
    (tmp_path / "script.yaml").write_text(SCRIPT)
    command = [sys.executable, "-m", "rehearsal_server", "--port", "0", "--script", "script.yaml"]
    setting = environment(PYTHONPATH=f"{ROOT}:{ROOT / 'tests'}")
    server = prepared.start(command, cwd=tmp_path, env=setting, stdout=subprocess.PIPE, text=True)
    try:
        assert server.stdout is not None
        url = server.stdout.readline().split()[0]
        body = {"model": "m", "messages": [{"role": "user", "content": "a cat"}]}
        said = post(f"{url}/v1/chat/completions", body)
        assert said["choices"][0]["message"]["content"] == "a grid of four"
        post(f"{url}/v1/chat/completions", body)
        contents = {"contents": [{"role": "user", "parts": [{"text": "once"}]}]}
        with pytest.raises(urllib.error.HTTPError, match="503"):
            post(f"{url}/v1beta/models/m:generateContent", contents)
        said = post(f"{url}/v1beta/models/m:generateContent?key=unread", contents)
        assert said["candidates"][0]["content"]["parts"] == [{"text": "a grid of four"}]
        with pytest.raises(urllib.error.HTTPError, match="404"):
            post(f"{url}/v1/elsewhere", body)
        report = counts(url)
    finally:
        server.kill()
        server.wait()
    assert (report["asked"], report["answered"], report["faults"]) == (4, 3, {"unavailable": 1})
    assert [(each["text"], each["asked"], each["answered"]) for each in report["requests"]] == [
        ("a cat", 2, 2),
        ("once", 2, 1),
    ]


def test_a_wrong_command_says_what_is_missing(tmp_path: Path) -> None:
    from rehearsal_server.__main__ import main

    assert main(["--script", str(tmp_path / "absent.yaml")]) == 2


CONCURRENCY = 4
"""Of ask_many.py."""


def answers_below(folder: Path) -> dict[str, dict[str, Any]]:
    """Return the records on disk by the text of their question; each must be whole."""
    records = [json.loads(file.read_text()) for file in folder.rglob("*.json")]
    return {record["request"]["messages"][-1]["parts"][0]: record for record in records}


@pytest.mark.slow
def test_a_killed_run_goes_on_and_no_finished_answer_is_asked_again(tmp_path: Path) -> None:
    count = 60
    script = Script([{"say": "an answer of four words"}], [{"fault": "unavailable", "first": 1, "match": "7$"}])
    command = [sys.executable, str(ROOT / "tests" / "support" / "llm" / "ask_many.py")]
    setting = environment(PYTHONPATH=f"{ROOT}:{ROOT / 'tests'}")
    with RehearsalServer(script, latency=0.05) as server:
        for kill_at in (11, 37):
            before = server.counts["answered"]
            run = prepared.start([*command, server.url, str(tmp_path), str(count)], env=setting)
            while server.counts["answered"] < max(kill_at, before + 1):
                assert run.poll() is None
                time.sleep(0.005)
            run.send_signal(signal.SIGKILL)
            run.wait()
            time.sleep(0.2)  # for the server to notice
            finished = answers_below(tmp_path / "answers")
            assert 0 < len(finished) < count
            asked_before = {each["text"]: each["asked"] for each in server.counts["requests"]}
        last = prepared.run([*command, server.url, str(tmp_path), str(count)], env=setting)
        assert last.returncode == 0, last.stderr
        report = server.counts
    asked_after = {each["text"]: each["asked"] for each in report["requests"]}
    assert {text: asked_after[text] for text in finished} == {text: asked_before[text] for text in finished}
    answers = answers_below(tmp_path / "answers")
    assert sorted(answers) == sorted(f"question {number}" for number in range(count))
    # Only what was on the wire at a kill, at most one a place of concurrency, was answered twice.
    assert report["answered"] <= count + 2 * CONCURRENCY
    # Every answer is paid for in the ledger, and what a kill left open counts in full.
    cost = sum(record["answer"]["cost_usd"] for record in answers.values())
    assert float(last.stdout) >= cost - 1e-9
