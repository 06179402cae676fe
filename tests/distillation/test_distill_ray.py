"""Ray's actors make what one process makes, end as it ends, and go on after a kill: real Ray, on two cores."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from rehearsal_server import RehearsalServer
from rehearsal_server.script import Asked, Fault
from support.commands import ROOT, command, environment
from support.distill_runs import CAPTIONS, arguments, captions_file, rule, run_here, samples, tars

from dsd_lightning.agents import QuotaExhausted
from dsd_lightning.distillation.executors.ray_data import Actors, RayExecutor
from dsd_lightning.distillation.records import DistillationError

FEW = CAPTIONS[:6]
CANARY = "sk-canary-fedcba9876543210"
WITH_KEY = [f"agents.{role}.provider.api_key_env=OPENAI_API_KEY" for role in ("llm", "vlm")]
ON_RAY = ["executor=ray", "executor.num_cpus=2", "executor.stages.verify.actors=2"]


@pytest.fixture(scope="module")
def session() -> Iterator[Path]:
    """Start Ray once for several runs; return the folder of its logs."""
    folder = tempfile.mkdtemp(prefix="ray-", dir="/tmp")  # a longer path would be too long for Ray's sockets
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("PYTHONPATH", f"{ROOT}:{ROOT / 'tests'}")
        patched.setenv("OPENAI_API_KEY", CANARY)
        patched.setenv("RAY_TMPDIR", folder)
        executor = RayExecutor(None, num_cpus=2, num_gpus=0, stages={})
        try:
            executor.connect()
            yield Path(folder)
        finally:
            executor.close()
            shutil.rmtree(folder, ignore_errors=True)


@pytest.mark.long
def test_actors_make_the_same_shards_and_end_with_the_same_failure(tmp_path: Path, session: Path) -> None:
    def empty(asked: Asked) -> str | Fault:
        return Fault("quota") if "`a red cup`" in asked.text else rule(asked)

    captions = captions_file(tmp_path, FEW)
    given = {"here": WITH_KEY, "ray": [*WITH_KEY, *ON_RAY]}
    said = []
    for name, more in given.items():
        with RehearsalServer(empty) as server, pytest.raises(QuotaExhausted) as failed:
            run_here(tmp_path / name, captions, server, *more)
        said.append(str(failed.value))
    assert said[0] == said[1]
    runs = []
    for name, more in given.items():
        with RehearsalServer(rule) as server:
            runs.append(run_here(tmp_path / name, captions, server, *more))
            assert all(each["answered"] == 1 for each in server.counts["requests"])
    assert runs[0] == runs[1]
    assert runs[0]["train"] > 0
    assert tars(tmp_path / "ray") == tars(tmp_path / "here")
    assert samples(tmp_path / "ray") == samples(tmp_path / "here")
    files = [path for folder in (tmp_path, session) for path in folder.rglob("*") if path.is_file()]
    assert not [path for path in files if CANARY.encode() in path.read_bytes()]


def test_more_than_there_is_and_nonsense_are_refused(tmp_path: Path, session: Path) -> None:
    captions = captions_file(tmp_path, FEW)
    with (
        RehearsalServer(rule) as server,
        pytest.raises(DistillationError, match=r"4 GPU each, but Ray has 0.*num_gpus"),
    ):
        run_here(tmp_path / "run", captions, server, *ON_RAY, "executor.stages.filter.num_gpus=4")
    with pytest.raises(DistillationError, match="actors=0 must be at least 1"):
        Actors(0, 1.0, None)


def test_without_ray_the_remedy_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray.data", None)
    with pytest.raises(DistillationError, match=r"pip install -e '\.\[ray\]'"):
        RayExecutor(None, None, None, {})


@pytest.mark.long
def test_a_killed_run_leaves_no_actor_and_goes_on_elsewhere(tmp_path: Path) -> None:
    captions = captions_file(tmp_path, FEW)
    with RehearsalServer(rule) as server:
        run_here(tmp_path / "undisturbed", captions, server)
        calls = server.counts["asked"]
    with RehearsalServer(rule, latency=0.2) as server:
        one = [f"agents.{role}.limits.concurrency=1" for role in ("llm", "vlm")]
        given = command(*arguments(tmp_path / "killed", captions, server.url, *ON_RAY, *one), module=("distill.py",))
        setting = environment(PYTHONPATH=f"{ROOT}:{ROOT / 'tests'}")
        with subprocess.Popen(given, cwd=ROOT, env=setting, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL) as run:
            while server.counts["answered"] < 2 and run.poll() is None:
                time.sleep(0.01)
            assert run.poll() is None, run.stderr.read() if run.stderr else ""
            run.kill()
        asked = -1
        while server.counts["asked"] != asked:
            asked = server.counts["asked"]
            time.sleep(2.0)
        server.settle()  # what was on the wire at the kill is answered
        assert asked < calls
        on_disk = {path.stem for path in (tmp_path / "killed" / "agents" / "answers").rglob("*.json")}
        before = server.counts["answered"]
        run_here(tmp_path / "killed", captions, server)
        assert server.counts["answered"] - before == calls - len(on_disk)
    assert tars(tmp_path / "killed") == tars(tmp_path / "undisturbed")
