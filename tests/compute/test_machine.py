"""The fast precision is chosen where the hardware has it, and a machine that cannot compile trains all the same."""

from __future__ import annotations

import logging
import platform

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.utils import counters

from dsd_lightning.compute import machine
from dsd_lightning.compute.machine import (
    FULL,
    HALF,
    compile_blocks,
    compiled_as_in_steps,
    fastest_precision,
    keep_memory,
    uncompiled,
)


@pytest.mark.parametrize(
    ("amx", "avx512_bf16", "precision"), [(True, True, HALF), (False, True, HALF), (False, False, FULL)]
)
@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_half_precision_is_for_hardware_made_for_it(
    amx: bool, avx512_bf16: bool, precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: avx512_bf16)
    assert fastest_precision() == precision


def test_an_unknown_wish_to_compile_is_refused() -> None:
    with pytest.raises(ValueError, match=r"compile='sometimes'.*auto"):
        compile_blocks([nn.Linear(2, 2)], "sometimes")


def test_nothing_is_compiled_unless_wanted() -> None:
    block = nn.Linear(2, 2)
    assert not compile_blocks([block], False)
    assert block._compiled_call_impl is None


@pytest.mark.parametrize(
    "error", [RuntimeError("no compiler\nof any kind"), FileNotFoundError("g++"), ImportError("x")]
)
def test_auto_goes_on_where_nothing_compiles(
    error: Exception, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(*_: object) -> None:
        raise error

    monkeypatch.setattr(torch, "compile", refuse)
    block = nn.Linear(2, 2)
    with caplog.at_level(logging.WARNING):
        assert not compile_blocks([block], "auto")
    assert str(error).splitlines()[0] in caplog.text
    assert block._compiled_call_impl is None


@pytest.mark.slow
def test_compiled_blocks_compute_the_same_and_can_run_as_written() -> None:
    if not machine._works(torch.compile):
        pytest.skip("nothing can be compiled here")
    block = nn.Sequential(nn.Linear(4, 8), nn.GELU(), nn.Linear(8, 4))
    values = torch.randn(3, 4)
    expected = block(values)
    assert compile_blocks([block], "auto")
    torch.testing.assert_close(block(values), expected)
    with uncompiled():
        assert torch.equal(block(torch.cat([values, values]))[:3], block(values))


def test_calls_as_large_as_a_step_keep_activations_only_while_they_run() -> None:
    recorded = []

    class Block(nn.Linear):
        def forward(self, values: Tensor) -> Tensor:
            recorded.append(torch.is_grad_enabled())
            return super().forward(values)

    block = Block(4, 4)
    with compiled_as_in_steps(block, 3):
        outputs = [block(torch.ones(batch, 4)) for batch in (3, 2, 3)]
        assert not torch.is_grad_enabled()
    assert recorded == [True, False, True]
    assert not any(output.requires_grad for output in outputs)
    assert block(torch.ones(3, 4)).requires_grad, "outside, everything is as it was"


def test_memory_is_kept_where_the_c_library_can() -> None:
    assert keep_memory() == (platform.libc_ver()[0] == "glibc")


class Doubling(nn.Module):
    def forward(self, values: Tensor) -> Tensor:
        return (values + 1).sin() * 2


@pytest.mark.long
def test_each_of_many_shapes_has_its_graph() -> None:
    # Buckets of several aspect ratios: beyond PyTorch's limit of 8 graphs, further shapes would run as written.
    if not machine._works(torch.compile):
        pytest.skip("nothing can be compiled here")
    block = Doubling()
    assert compile_blocks([block], True)
    before = counters["stats"]["unique_graphs"]
    for rows in range(2, 12):
        block(torch.zeros(rows, 4))
    assert counters["stats"]["unique_graphs"] - before == 10
