"""Gradient checkpointing changes nothing but memory, and the plan counts how much."""

from __future__ import annotations

import pytest
import torch
from support.exported_run import with_random_weights
from support.models.architecture_rows import ROWS
from support.models.step_memory import BATCH, SIDE, TEXT, loss_of, peak_of, transformer

from dsd_lightning.compute.gradient_checkpointing import checkpoint_blocks, is_checkpointed
from dsd_lightning.planning.counters import FLOAT32, Cost
from dsd_lightning.planning.meta_step import step_cost

CHOICES: tuple[str | int, ...] = ("none", 2, "all")


@pytest.mark.parametrize("row", ROWS)
def test_gradients_do_not_change(row: str) -> None:
    gradients = []
    for choice in CHOICES:
        architecture = with_random_weights(ROWS[row].build(transformer(torch.float32)))
        checkpoint_blocks(architecture, choice)
        loss = loss_of(architecture)
        loss.backward()
        gradients.append({"loss": loss.detach(), **{name: p.grad for name, p in architecture.trainable()}})
    for other in gradients[1:]:
        assert other.keys() == gradients[0].keys()
        for name, value in gradients[0].items():
            assert value is not None
            assert torch.equal(value, other[name]), name


def test_which_blocks_are_recomputed() -> None:
    assert [is_checkpointed(i, 3) for i in range(7)] == [True, False, False, True, False, False, True]
    assert not any(is_checkpointed(i, "none") for i in range(7))
    assert all(is_checkpointed(i, choice) for i in range(7) for choice in ("all", 1))
    for wrong in ("some", 0, True):
        with pytest.raises(ValueError, match=r"gradient_checkpointing=.*choose none, all"):
            is_checkpointed(0, wrong)


# --- The plan's memory against a step's.


def predicted(row: str, dtype: torch.dtype, choice: str | int) -> tuple[Cost, int]:
    architecture = ROWS[row].build(transformer(dtype, "meta")).to("meta")
    checkpoint_blocks(architecture, choice)
    trained = sum(p.numel() for _, p in architecture.trainable())
    weights = dict.fromkeys(architecture.frames, 1.0)
    return step_cost(architecture, (SIDE, SIDE), TEXT, weights), trained


CASES = [
    # By default every choice on the paper's architecture, and every second block on each other one.
    pytest.param(row, torch.float32, choice, marks=() if row == "parallel" or choice == 2 else pytest.mark.long)
    for row in ROWS
    for choice in CHOICES
] + [pytest.param("parallel", torch.bfloat16, choice, marks=pytest.mark.long) for choice in CHOICES]


@pytest.mark.parametrize(("row", "dtype", "choice"), CASES)
def test_the_planned_peak_is_that_of_a_step(row: str, dtype: torch.dtype, choice: str | int) -> None:
    architecture = ROWS[row].build(transformer(dtype))
    checkpoint_blocks(architecture, choice)
    cost, trained = predicted(row, dtype, choice)
    # Planned from one sample; the step has two.
    planned = cost.activations(BATCH) + trained * FLOAT32
    assert planned == pytest.approx(peak_of(architecture), rel=0.1)


def test_recomputing_saves_memory_and_costs_operations() -> None:
    none, half, everything = (predicted("parallel", torch.float32, choice)[0] for choice in CHOICES)
    assert none.activations(1) > half.activations(1) > everything.activations(1)
    assert none.training < half.training < everything.training
    assert none.forward == half.forward == everything.forward
    blocks = everything.training - none.training
    assert blocks == pytest.approx(none.forward, rel=0.05)  # but for the embedders
