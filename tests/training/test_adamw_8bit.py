"""AdamW with moments of 8 bits trains as AdamW does, and goes on after a stop as if there had been none."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf
from support.commands import CONF
from support.tiny_run import Run, assert_same, make_architecture, make_module
from torch import Tensor

from dsd_lightning.runs.resolvers import optimizer_bytes

pytest.importorskip("torchao")

from torchao.optim.subclass_8bit import OptimState8bit

STEPS, HALF = 6, 3
RANK = 128
"""Moments of fewer than 4096 values stay in float32: of this rank, the factors have as many."""


@pytest.fixture(autouse=True)
def as_written() -> Iterator[None]:
    """Let the optimizer's step run uncompiled: compiling takes longer than all steps."""
    with torch.compiler.set_stance("force_eager"):
        yield


def optimizer(name: str) -> Any:
    config = OmegaConf.load(CONF / "optimizer" / f"{name}.yaml")
    config.lr = 1e-3
    return instantiate(config)


def run(folder: Path, name: str, steps: int = STEPS) -> Run:
    training = Run(folder, steps, every=HALF)
    training.module = make_module(make_architecture(rank=RANK))
    training.module.make_optimizer = optimizer(name)
    return training


def moments(of: Run) -> list[Tensor]:
    states = of.trainer.optimizers[0].state.values()
    return [state[name] for state in states for name in ("exp_avg", "exp_avg_sq")]


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory) -> Run:
    with torch.compiler.set_stance("force_eager"):
        return run(tmp_path_factory.mktemp("straight"), "adamw_8bit").fit()


def test_it_learns_as_adamw_does(straight: Run, tmp_path: Path) -> None:
    plain = run(tmp_path, "adamw").fit()
    assert len(straight.recorder.losses) == STEPS
    for step, loss in plain.recorder.losses.items():
        assert straight.recorder.losses[step] == pytest.approx(loss, rel=0.01)
    assert straight.recorder.losses != plain.recorder.losses


def test_moments_take_the_bytes_that_are_planned(straight: Run) -> None:
    large = [each for each in moments(straight) if isinstance(each, OptimState8bit)]
    assert large
    stored = sum(each.codes.nbytes + each.scale.nbytes for each in large)
    values = sum(each.numel() for each in large) / 2
    assert stored == values * optimizer_bytes("torchao.optim.AdamW8bit")


def test_a_stopped_run_goes_on_bit_for_bit(straight: Run, tmp_path: Path) -> None:
    run(tmp_path, "adamw_8bit", HALF).fit()
    resumed = run(tmp_path / "resumed", "adamw_8bit").fit(tmp_path / "checkpoints" / f"step_{HALF:08d}")
    assert resumed.recorder.losses == {step: loss for step, loss in straight.recorder.losses.items() if step >= HALF}
    assert_same(resumed.trained(), straight.trained())
    for left, right in zip(moments(resumed), moments(straight), strict=True):
        assert type(left) is type(right)
        if isinstance(left, OptimState8bit):
            assert torch.equal(left.codes, right.codes)
            assert torch.equal(left.scale, right.scale)
        else:
            assert torch.equal(left, right)
