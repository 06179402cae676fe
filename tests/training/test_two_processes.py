"""The paper's preset in two processes that choose as under NCCL: killed in its validation, resumed, judged to its end."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from support.commands import metrics
from support.nccl_choices import FACTS, KILL, two_processes
from support.presets import sizes, write_encoded

from dsd_lightning.checkpoints.adapter import read_adapter
from dsd_lightning.checkpoints.folder_io import list_steps

pytestmark = pytest.mark.long


@pytest.fixture(scope="module")
def encoded(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return shards with the encodings that the preset reads."""
    return write_encoded(tiny_base, tmp_path_factory.mktemp("encoded"))


@pytest.mark.parametrize("strategy", ["adapter_shard", "fsdp"])
def test_the_paper_s_run_is_killed_in_validation_resumed_and_judged(
    strategy: str, tiny_base: Path, encoded: Path, tmp_path: Path
) -> None:
    run_dir = tmp_path / "run"
    choices = [
        "experiment=dsd_paper",
        *sizes(tiny_base, encoded, devices=2),
        f"trainer/strategy={strategy}",
        "callbacks=judge",
        "callbacks.judge.subjects=1",
        "callbacks.judge.batch_size=9",
        "callbacks.judge.every_n_steps=3",
        f"callbacks.judge.benchmark.folder={tmp_path / 'benchmark'}",
        f"callbacks.judge.agent.cache.folder={tmp_path / 'answers'}",
        "callbacks.checkpoint.every_n_steps=2",
        "trainer.log_every_n_steps=1",
        "trainer.max_steps=4",
    ]
    killed = two_processes(run_dir, *choices, KILL)
    assert killed.returncode != 0
    assert [path.name for path in list_steps(run_dir / "checkpoints").values()] == ["step_00000002"], killed.stderr[
        -4000:
    ]
    assert not any(row.get("val/loss_right") for row in metrics(run_dir))
    resumed = two_processes(run_dir, *choices)  # ckpt=auto
    assert resumed.returncode == 0, resumed.stderr[-4000:]
    rows = metrics(run_dir)
    assert [row["step"] for row in rows if row.get("val/loss_right")] == ["1", "3"], "validation due, and the last"
    assert [row["step"] for row in rows if row.get("judge/cp_pf")] == ["3", "4"]
    for rank in (0, 1):
        assert json.loads((run_dir / FACTS.format(rank)).read_text())["inference_mode"] == [False, False]
    last = run_dir / "checkpoints" / "step_00000004"
    _, trained = read_adapter(last, ema=False)
    _, ema = read_adapter(last)
    assert all(torch.isfinite(value).all() for value in trained.values())
    assert any(not torch.equal(value, ema[name]) for name, value in trained.items())
