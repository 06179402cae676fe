"""The table of docs/evaluate.md says what each setting of a judgement does; made here by changing one at a time."""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from PIL import Image
from rehearsal_server import Asked, RehearsalServer
from support.llm.agent_parts import agent_of
from support.llm.judge_images import judge
from support.llm.rehearsals import ROOT, Stand

from dsd_lightning.agents import Sampling
from dsd_lightning.cli.settings import SettingError, check_settings
from dsd_lightning.evaluation.errors import EvaluationError
from dsd_lightning.evaluation.judging.judgements import MEASURES, Judgement, Record
from dsd_lightning.evaluation.judging.protocol import Protocol
from dsd_lightning.evaluation.judging.rubrics import SHIPPED, Rubrics
from dsd_lightning.evaluation.judging.run import Judging
from dsd_lightning.evaluation.samples.benchmark import folder
from dsd_lightning.evaluation.samples.result_folder import Samples
from dsd_lightning.evaluation.scores.comparison import compare
from dsd_lightning.evaluation.scores.estimates import collect

PAGE = Path(__file__).parents[2] / "docs" / "evaluate.md"

PLAIN = ("cp", "pf")
QUESTIONS = 2 * 2 * len(PLAIN)

CHANGES: dict[str, tuple[str, dict[str, Any]]] = {
    "protocol.measures": ("debiased ones, too", {"measures": MEASURES}),
    "protocol.repeats": ("2", {"protocol": {"repeats": 2}}),
    "protocol.image_side": ("48", {"protocol": {"image_side": 48}}),
    "protocol.jpeg_quality": ("30", {"protocol": {"jpeg_quality": 30}}),
    "protocol.prompt_prefix": ("none", {"protocol": {"prompt_prefix": ""}}),
    "protocol.attempts": ("3", {"protocol": {"attempts": 3}}),
    "protocol.sampling": ("temperature 0.5", {"protocol": {"sampling": {"temperature": 0.5}}}),
    "protocol.answer_tokens": ("500", {"protocol": {"answer_tokens": 500}}),
    "judge.sampling.max_output_tokens": ("50", {"sampling": {"max_output_tokens": 50}}),
    "judge.sampling.temperature": ("0.7", {"sampling": {"temperature": 0.7}}),
    "judge.sampling.top_p": ("0.5", {"sampling": {"top_p": 0.5}}),
    "judge.sampling.seed": ("1", {"sampling": {"seed": 1}}),
    "judge.sampling.image_detail": ("high", {"sampling": {"image_detail": "high"}}),
    "judge.sampling.extra": ("reasoning_effort low", {"sampling": {"extra": {"reasoning_effort": "low"}}}),
    "judge.provider.model": ("another", {"model": "another-judge"}),
    "judge.provider.identity": ("another, as by another host or port", {"identity": None}),
    "judge.limits": ("1 at a time", {"concurrency": 1}),
    "rubrics": ("another folder", {}),
    "retry": ("all kinds", {"retry": ["rejected", "unparsable", "refused"]}),
}
"""By setting, what it is changed to; all others are as in the first run."""


def world(root: Path) -> None:
    for number in range(2):
        file = root / "benchmark" / f"{number}.png"
        file.parent.mkdir(exist_ok=True)
        Image.new("RGB", (16, 16), (255, 40 * number, 0)).save(file)
        file.with_suffix(".txt").write_text("on the moon\nin the snow")
    samples = Samples(root / "samples", "method")
    for case in folder(root / "benchmark").cases():
        result = Image.linear_gradient("L").rotate(30 * int(case.subject.name) + 60 * case.prompt.index)
        samples.write(case, result.convert("RGB"), Image.new("RGB", (16, 16)))
    shutil.copytree(SHIPPED, root / "rubrics")
    for file in (root / "rubrics").glob("*.txt"):
        file.write_text(file.read_text() + "Be strict.")


def in_one_table(before: list[Judgement], after: list[Judgement]) -> str:
    try:
        compare(collect(before, "sample"), collect(after, "sample"), ("cp",), exchanges=10)
    except EvaluationError as error:
        return "refused: " + str(error).removeprefix("rows of different ").split(" ")[0]
    return "yes"


def by_digest(asked: Asked) -> str:
    return f"Score: {int(asked.digest, 16) % 5}"


def table(root: Path) -> str:
    world(root)
    lines = [
        "| setting | changed to | judgements made | API calls | in one table with the old ones |",
        "|---|---|---|---|---|",
    ]
    record = Record(root / "judgements.jsonl")
    with RehearsalServer(by_digest) as server:
        judge(server.url, root, measures=PLAIN)
        first = list(record.read().values())
        assert len(first) == server.counts["asked"] == QUESTIONS
        for setting, (value, changed) in CHANGES.items():
            recorded, calls = set(record.read()), server.counts["asked"]
            given = {"measures": PLAIN, **changed} | ({"rubrics": root / "rubrics"} if setting == "rubrics" else {})
            judge(server.url, root, **given)
            fresh = [each for question, each in record.read().items() if question not in recorded]
            calls = server.counts["asked"] - calls
            mixed = in_one_table(first, fresh) if fresh else "the same"
            lines.append(f"| `{setting}` | {value} | {len(fresh)} | {calls} | {mixed} |")
    return "\n".join(lines) + "\n"


def test_the_page_says_what_each_setting_does(tmp_path: Path) -> None:
    computed = table(tmp_path)
    assert computed in PAGE.read_text(encoding="utf-8"), f"put this table into {PAGE}:\n{computed}"


def test_every_setting_of_a_judgement_is_in_the_table() -> None:
    named = {name.rpartition(".")[2] for name in CHANGES}
    assert {each.name for kind in (Protocol, Sampling) for each in fields(kind)} <= named


@pytest.mark.parametrize("protocol", ["ours", "dreambenchpp", "vistorybench"])
def test_every_setting_of_a_protocol_can_be_given_on_the_command_line(protocol: str, tmp_path: Path) -> None:
    sampling = Sampling(50, 0.5, 0.25, 1, "low", {"reasoning_effort": "low"})
    changes = {**asdict(sampling), "extra": "{reasoning_effort: low}"}
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        given = [f"protocol.sampling.{name}={value}" for name, value in changes.items()]
        config = compose("evaluate", [f"protocol={protocol}", "out=x", *given])
        wrong = compose("evaluate", [f"protocol={protocol}", "out=x", "protocol.sampling.temperature=hot"])
    with pytest.raises(SettingError, match=r"temperature='hot' must be a number of at least 0, or null"):
        check_settings(wrong)
    assert {str(name) for name in config.protocol if not str(name).startswith("_")} == {
        e.name for e in fields(Protocol)
    }
    with agent_of(Stand(str), tmp_path, sampling=Sampling(7, 1.0)) as agent:
        judging = Judging(agent, Rubrics(), instantiate(config.protocol), Record(tmp_path / "r"))
        assert judging.sampling == sampling
        assert json.loads(judging.setup)["extra"] == {"reasoning_effort": "low"}
        judging.protocol = replace(judging.protocol, sampling={"temperature": None})
        assert judging.sampling == agent.sampling  # null takes the judge's
        judging.protocol = replace(judging.protocol, sampling={"temperature": "hot"})
        with pytest.raises(EvaluationError, match=r"protocol\.sampling=\{'temperature': 'hot'\}"):
            _ = judging.sampling
