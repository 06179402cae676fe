"""Image APIs as teachers: over the real protocols, within the budget, and no image generated or paid twice."""

from __future__ import annotations

import json
import re
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest
from rehearsal_server import Asked, Fault, RehearsalServer
from rehearsal_server.protocols import GENERATED_TOKENS
from support.commands import ROOT, command, environment
from support.distill_runs import CAPTIONS, arguments, captions_file, compose_distill, rejected, rule
from support.processes import prepared

from dsd_lightning.agents.batch.folder import BatchFolder
from dsd_lightning.agents.failures import BudgetExceeded
from dsd_lightning.distillation.expectation import expect, outlook
from dsd_lightning.distillation.records import GRID
from dsd_lightning.distillation.runner import Distillation
from dsd_lightning.distillation.store import Store
from dsd_lightning.images.pixels import load_rgb

LIVE = ("openai_images", "gemini_images")
BATCHES = tuple(f"{name}_batch" for name in LIVE)
PRICE_OF_IMAGE = {"openai": 0.053, "gemini": 0.0672}
OUTPUT_USD = {"openai": 30.0, "gemini": 60.0}
INPUT_USD = {"openai": 5.0, "gemini": 0.5}
SUBJECTS = 4


@pytest.fixture(autouse=True)
def keys(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OPENAI_API_KEY", "GEMINI_API_KEY"):
        monkeypatch.setenv(name, "unread")


def by_api(teacher: str, out: Path, captions: Path, server: RehearsalServer, *more: str) -> list[str]:
    """Return the command line of a run up to the grids, which the API behind `server` generates."""
    given = arguments(out, captions, server.url, f"agents/teacher={teacher}", "until=grids", *more)
    given = [each for each in given if not each.startswith(("agents/teacher=tiny", "agents.teacher._target_"))]
    given += [f"agents.teacher.{side}=128" for side in ("height", "width")]
    given.append(f"agents.teacher.agent.provider.base_url={server.url}{'/v1' if teacher.startswith('openai') else ''}")
    given.append("agents.teacher.agent.limits.requests_per_minute=null")
    if teacher.startswith("openai"):
        given.append("agents.teacher.agent.sampling.extra.size=1024x1024")
    if teacher.endswith("_batch"):
        given += ["agents.teacher.agent.provider.batches.gather=0.3", "agents.teacher.agent.provider.batches.poll=0.1"]
    return given


def images_asked(server: RehearsalServer) -> list[tuple[int, int]]:
    """Return how often each image was asked for and answered."""
    requests = server.counts["requests"]
    return [(each["asked"], each["answered"]) for each in requests if each["text"].startswith("a grid of")]


def spent(agents: Path) -> float:
    lines = [json.loads(line) for line in (agents / "spending.jsonl").read_text().splitlines()]
    return sum(line.get("spent_usd", 0.0) for line in lines)


@pytest.mark.parametrize("teacher", [*LIVE, *(pytest.param(each, marks=pytest.mark.long) for each in BATCHES)])
def test_grids_are_generated_paid_and_reported_once(teacher: str, tmp_path: Path) -> None:
    captions = captions_file(tmp_path, CAPTIONS[:SUBJECTS])
    folder = f"agents.folder={tmp_path / 'agents'}"
    with RehearsalServer(rule) as server:
        Distillation(compose_distill(*by_api(teacher, tmp_path / "one", captions, server, folder))).run()
        assert images_asked(server) == [(1, 1)] * SUBJECTS
        assert (server.counts["batches"] > 0) == teacher.endswith("_batch")
        asked = server.counts["asked"]
        Distillation(compose_distill(*by_api(teacher, tmp_path / "two", captions, server, folder))).run()
        assert server.counts["asked"] == asked
    manifests = Store(tmp_path / "one").manifests("grids")
    assert sum(each.kept for each in manifests) == SUBJECTS
    provider = teacher.partition("_")[0]
    share = 0.5 if teacher.endswith("_batch") else 1.0
    words = sum(
        len(record.values["prompt"].split())
        for each in manifests
        for record in Store(tmp_path / "one").read("grids", each.partition)
    )
    expected = share * (SUBJECTS * GENERATED_TOKENS * OUTPUT_USD[provider] + words * INPUT_USD[provider]) / 1e6
    assert sum(each.usage.usd for each in manifests) == pytest.approx(expected)
    assert spent(tmp_path / "agents") == pytest.approx(expected)
    assert sum(each.usage.calls for each in manifests) == SUBJECTS
    grids = [
        [np.asarray(load_rgb(record.images[GRID])) for record in Store(tmp_path / name).read("grids", 0, (GRID,))]
        for name in ("one", "two")
    ]
    assert grids[0][0].shape == (128, 128, 3)
    assert all(np.array_equal(one, two) for one, two in zip(*grids, strict=True))


@pytest.mark.parametrize("teacher", [*LIVE, pytest.param("openai_images_batch", marks=pytest.mark.long)])
def test_a_refused_image_is_set_aside_and_remembered_and_the_budget_ends_the_run(teacher: str, tmp_path: Path) -> None:
    def refusing(asked: Asked) -> str | Fault:
        return Fault("refusal") if asked.text.startswith("a grid of a red") else rule(asked)

    captions = captions_file(tmp_path, CAPTIONS[:2])
    folder = f"agents.folder={tmp_path / 'agents'}"
    with RehearsalServer(refusing) as server:
        for out in ("one", "two"):
            Distillation(compose_distill(*by_api(teacher, tmp_path / out, captions, server, folder))).run()
            assert list(rejected(tmp_path / out, "grids")) == ["refused"]
            assert len(rejected(tmp_path / out, "grids")["refused"]) == 1
        assert sorted(asked for asked, _ in images_asked(server)) == [1, 1]
        few = by_api(teacher, tmp_path / "poor", captions, server, "agents.budget.budget_usd=0.02")
        with pytest.raises(BudgetExceeded):
            Distillation(compose_distill(*few)).run()


@pytest.mark.parametrize("teacher", LIVE)
def test_the_dry_run_counts_the_images_at_their_price_and_an_unknown_image_has_none(
    teacher: str, tmp_path: Path
) -> None:
    captions = captions_file(tmp_path, CAPTIONS[:SUBJECTS])
    with RehearsalServer(rule) as server:
        config = compose_distill(*by_api(teacher, tmp_path / "run", captions, server, f"count={SUBJECTS}"))
        expected = expect(config)
        assert server.counts["asked"] == 0
        [grids] = [each.estimate for each in expected if each.stage == "grids"]
        assert grids.calls == SUBJECTS
        assert grids.usd == pytest.approx(SUBJECTS * PRICE_OF_IMAGE[teacher.partition("_")[0]], rel=0.03)
        assert "hours of one" not in outlook(config, expected)
        model = config.agents.teacher.agent.provider.model
        assert re.search(rf"  price     of {model}: https://\S+ 20\d\d-\d\d-\d\d\n", outlook(config, expected))
        kind = "quality=best" if teacher.startswith("openai") else "image_config.image_size=9K"
        unknown = by_api(teacher, tmp_path / "run", captions, server, f"agents.teacher.agent.sampling.extra.{kind}")
        with pytest.raises(Exception, match=r"images: .*(best|9K)"):
            Distillation(compose_distill(*unknown)).run()


@pytest.mark.long
@pytest.mark.parametrize("teacher", LIVE)
def test_a_killed_run_goes_on_without_an_image_twice(teacher: str, tmp_path: Path) -> None:
    captions = captions_file(tmp_path, CAPTIONS)
    few = "agents.teacher.agent.limits.concurrency=2"
    with RehearsalServer(rule, latency=0.25) as server:
        given = command(*by_api(teacher, tmp_path / "run", captions, server, few), module=("distill.py",))
        setting = environment(PYTHONPATH=f"{ROOT}:{ROOT / 'tests'}")
        with prepared.start(given, env=setting, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL) as run:
            while sum(answered for _, answered in images_asked(server)) < 5:
                assert run.poll() is None, run.stderr.read() if run.stderr else ""
                time.sleep(0.005)
            run.kill()
        server.settle()  # what was on the wire at the kill is answered
        stored = len(list((tmp_path / "run" / "agents" / "answers").rglob("*.image")))
        before = sum(answered for _, answered in images_asked(server))
        assert 5 - 2 <= stored <= before < len(CAPTIONS)
        last = prepared.run(given, env=setting)
        assert last.returncode == 0, last.stderr
        after = images_asked(server)
    assert len(after) == len(CAPTIONS)
    # What was on the wire at the kill was never stored; everything else is not sent again.
    assert before - stored <= 2
    assert sum(answered for _, answered in after) - before == len(CAPTIONS) - stored
    assert sum(each.kept for each in Store(tmp_path / "run").manifests("grids")) == len(CAPTIONS)


@pytest.mark.long
@pytest.mark.parametrize("teacher", BATCHES)
def test_a_run_killed_while_its_batch_is_under_way_pays_no_image_twice(teacher: str, tmp_path: Path) -> None:
    captions = captions_file(tmp_path, CAPTIONS[:SUBJECTS])
    with RehearsalServer(rule, latency=2.0) as server:
        given = command(*by_api(teacher, tmp_path / "run", captions, server), module=("distill.py",))
        setting = environment(PYTHONPATH=f"{ROOT}:{ROOT / 'tests'}")
        folder = BatchFolder(tmp_path / "run" / "agents" / "batches")
        with prepared.start(given, env=setting, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL) as run:
            while not [batch for batch in folder.all() if batch.id is not None]:
                assert run.poll() is None, run.stderr.read() if run.stderr else ""
                time.sleep(0.02)
            run.kill()
        assert Store(tmp_path / "run").manifests("grids") == []
        last = prepared.run(given, env=setting)
        assert last.returncode == 0, last.stderr
        assert images_asked(server) == [(1, 1)] * SUBJECTS
        assert server.counts["batches"] == 1
    assert sum(each.kept for each in Store(tmp_path / "run").manifests("grids")) == SUBJECTS
