"""The paper's preset in two processes that choose as under NCCL: killed in its validation, resumed, judged to its end."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from support.commands import metrics
from support.presets import sizes, write_encoded
from support.processes import nccl_choices
from support.processes.nccl_choices import FACTS, KILL
from support.processes.ranks import two_ranks

from dsd_lightning.checkpoints.adapter import read_adapter
from dsd_lightning.checkpoints.folder_io import list_steps

pytestmark = [pytest.mark.long, pytest.mark.slow]


@pytest.fixture(scope="module")
def encoded(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return shards with the encodings that the preset reads."""
    return write_encoded(tiny_base, tmp_path_factory.mktemp("encoded"))


@pytest.mark.parametrize("strategy", ["adapter_shard", "fsdp", "hybrid"])
def test_the_paper_s_run_is_killed_in_validation_resumed_and_judged(
    strategy: str, tiny_base: Path, encoded: Path, tmp_path: Path
) -> None:
    run_dir = tmp_path / "run"
    choices = [
        "experiment=dsd_paper",
        *sizes(tiny_base, encoded, devices=2),
        f"trainer/strategy={strategy}",
        # As if each process were a node: it holds all shards, and gradients are averaged between both.
        *(["trainer.strategy.replicas=2"] if strategy == "hybrid" else []),
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
    killed = two_ranks(nccl_choices.__file__, run_dir, *choices, KILL)
    assert killed.returncode != 0
    assert [path.name for path in list_steps(run_dir / "checkpoints").values()] == ["step_00000002"], killed.stderr[
        -4000:
    ]
    assert not any(row.get("val/loss_right") for row in metrics(run_dir))
    resumed = two_ranks(nccl_choices.__file__, run_dir, *choices)  # ckpt=auto
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


STEPS = 3


@pytest.mark.parametrize("strategy", ["adapter_shard", "fsdp"])
def test_compiled_checkpointed_blocks_train_sharded_as_written_ones_do(
    strategy: str, tiny_base: Path, encoded: Path, tmp_path: Path
) -> None:
    """In float32, over three steps: losses and gradient norms within 1e-4 of their value, weights within 1e-5."""
    ended = {}
    for compiled in ("true", "false"):
        run_dir = tmp_path / compiled
        launched = two_ranks(
            nccl_choices.__file__,
            run_dir,
            "experiment=dsd_paper",
            *sizes(tiny_base, encoded, devices=2),
            f"trainer/strategy={strategy}",
            "callbacks.samples=null",
            f"compile={compiled}",
            *("base.model.dtype=float32", "trainer.precision=32-true", "gradient_checkpointing=all"),
            "trainer.log_every_n_steps=1",
            f"trainer.max_steps={STEPS}",
        )
        assert launched.returncode == 0, launched.stderr[-4000:]
        for rank in (0, 1):
            graphs = json.loads((run_dir / FACTS.format(rank)).read_text())["graphs"]
            kinds = 2 if compiled == "true" else 0  # double and single blocks
            assert graphs == [kinds] * STEPS, "each kind of block is compiled once, in the first step"
        ended[compiled] = (
            metrics(run_dir),
            read_adapter(run_dir / "checkpoints" / f"step_{STEPS:08d}", ema=False)[1],
        )
    (rows, weights), (expected_rows, expected) = ended["true"], ended["false"]
    for name in ("train/loss", "optimizer/grad_norm"):
        one, other = ([float(row[name]) for row in each if row.get(name)] for each in (rows, expected_rows))
        assert len(one) == STEPS
        assert one == pytest.approx(other, rel=1e-4)
    for name, value in expected.items():
        torch.testing.assert_close(weights[name], value, rtol=0, atol=1e-5, msg=name)
