"""`gradient_checkpointing=auto` fills the memory that there is: its choice fits with the reserve, the next larger does not."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support.commands import compose_train

from dsd_lightning.planning.checkpointing import CHOICES, choose
from dsd_lightning.planning.of_config import choose_checkpointing, plan
from dsd_lightning.planning.plan import Planner
from dsd_lightning.training import run


@given(
    st.lists(st.floats(1, 100), min_size=len(CHOICES), max_size=len(CHOICES)).map(lambda peaks: sorted(peaks)[::-1]),
    st.floats(0, 120),
)
def test_the_choice_fits_and_the_next_larger_one_does_not(peaks: list[float], available: float) -> None:
    held = dict(zip(CHOICES, peaks, strict=True))
    asked = []
    chosen = choose(lambda choice: asked.append(choice) or held[choice], available)  # type: ignore[func-returns-value]
    assert len(asked) <= 3
    assert held[chosen] <= available or chosen == "all"
    if chosen != CHOICES[0]:
        assert held[CHOICES[CHOICES.index(chosen) - 1]] > available


def peak(base: Path, choice: str | int) -> float:
    """Return the planned peak of a choice, GiB."""
    return float(re.search(r"memory: peak +([\d.]+) GiB", plan(config_of(base, choice))).group(1))  # type: ignore[union-attr]


def config_of(base: Path, choice: str | int, *more: str):  # type: ignore[no-untyped-def]
    return compose_train(
        Path("run"),
        *(f"base.model.path={base}", "arch.lora.rank=2", "data.datamodule.batch_size=512", "callbacks=minimal"),
        *("base.encoder_parameters=0", f"gradient_checkpointing={choice}", *more),
    )


@pytest.mark.long
def test_the_memory_of_a_gpu_decides(tiny_base: Path, caplog: pytest.LogCaptureFixture) -> None:
    none, everything = peak(tiny_base, "none"), peak(tiny_base, "all")
    assert everything < 0.9 * none
    reserve = compose_train(Path("run")).planner.reserve
    config = config_of(tiny_base, "auto")
    assert choose_checkpointing(config, 1.05 * none / (1 - reserve)) == "none"
    assert choose_checkpointing(config, 0.9 * none / (1 - reserve)) != "none"
    assert choose_checkpointing(config, 0.5 * everything) == "all"
    caplog.set_level("INFO")
    assert choose_checkpointing(config_of(tiny_base, 2), 0.1) == 2
    assert "gradient_checkpointing=" not in caplog.text
    choose_checkpointing(config, 1.0)
    assert "gradient_checkpointing=auto" in caplog.text
    table = plan(config_of(tiny_base, "auto", f"planner.gpu_memory_gib={1.05 * none / (1 - reserve)}"))
    assert "(gradient_checkpointing=none)" in table


def test_a_cpu_needs_no_checkpointing_and_a_reserve_is_a_share() -> None:
    config = compose_train(Path("run"), "gradient_checkpointing=auto")
    assert run._checkpointing(config, torch.device("cpu")) == "none"
    with pytest.raises(ValueError, match=r"planner\.reserve=1"):
        Planner(mfu=0.4, gpu="h100", reserve=1)
