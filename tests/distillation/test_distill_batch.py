"""A run in batch mode makes the same shards as one without, for half the dollars."""

from __future__ import annotations

import signal
import subprocess
import time
from pathlib import Path

import pytest
from rehearsal_server import RehearsalServer
from support.commands import ROOT, command, environment
from support.distill_runs import CAPTIONS, arguments, captions_file, compose_distill, rule, tars
from support.processes import prepared

from dsd_lightning.agents.batch.folder import BatchFolder
from dsd_lightning.cli.errors import INTERRUPTED
from dsd_lightning.distillation.runner import Distillation
from dsd_lightning.distillation.store import Store

IN_BATCHES = [
    "agents/model@agents.llm=openai_batch",
    "agents/model@agents.vlm=openai_batch",
    *(
        f"agents.{role}.provider.{each}"
        for role in ("llm", "vlm")
        for each in ("batches.gather=0.3", "batches.poll=0.1")
    ),
]
MODELS = [f"agents.{role}.provider.model=gpt-5.4" for role in ("llm", "vlm")]
ROUNDS = 1 + 1 + 3 + 4
"""Questions that wait for one another: subject, grid prompt, three of the judge, four texts of a pair."""


@pytest.fixture(autouse=True)
def key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "unread")


def of_openai(out: Path, captions: Path, server: RehearsalServer, *more: str) -> list[str]:
    given = arguments(out, captions, server.url, *MODELS, *more)
    return [each.replace("agents=local", "agents=openai") for each in given]


@pytest.mark.long
def test_batches_make_the_same_shards_for_half_the_dollars(tmp_path: Path) -> None:
    captions = captions_file(tmp_path, CAPTIONS[:4])
    spent = {}
    with RehearsalServer(rule) as server:
        for name, more in {"live": [], "batches": IN_BATCHES}.items():
            counts = Distillation(compose_distill(*of_openai(tmp_path / name, captions, server, *more))).run()
            assert counts["train"] > 0
            stages = ("filter", "prompts", "verify", "caption")
            manifests = [each for stage in stages for each in Store(tmp_path / name).manifests(stage)]
            spent[name] = sum(each.usage.usd for each in manifests)
        assert 0 < server.counts["batches"] <= ROUNDS
    assert spent["batches"] == pytest.approx(spent["live"] / 2) != 0
    assert tars(tmp_path / "batches") == tars(tmp_path / "live")


@pytest.mark.long
def test_ctrl_c_does_not_wait_for_the_batch_which_the_next_run_takes_up(tmp_path: Path) -> None:
    captions = captions_file(tmp_path, CAPTIONS[:2])
    few = ["until=filter", *IN_BATCHES]
    with RehearsalServer(rule, latency=8.0) as server:
        given = command(*of_openai(tmp_path / "run", captions, server, *few), module=("distill.py",))
        setting = environment(PYTHONPATH=f"{ROOT}:{ROOT / 'tests'}")
        with prepared.start(given, env=setting, stderr=subprocess.PIPE, text=True) as run:
            folder = BatchFolder(tmp_path / "run" / "agents" / "batches")
            while not [batch for batch in folder.all() if batch.id is not None]:
                assert run.poll() is None, run.stderr.read() if run.stderr else ""
                time.sleep(0.02)
            stopped = time.monotonic()
            run.send_signal(signal.SIGINT)
            assert run.wait(timeout=60) == INTERRUPTED
            assert time.monotonic() - stopped < 6.0
        Distillation(compose_distill(*of_openai(tmp_path / "run", captions, server, *few))).run()
        assert server.counts["batches"] == 1
