"""A base in 8 or 4 bits trains factors as the unquantised one does, in the memory that was planned."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hydra.utils import instantiate
from support.commands import compose_train, tiny
from support.models.architecture_rows import ROWS, base, with_random_weights
from support.models.step_memory import loss_of, peak_of, transformer
from support.models.two_devices import WHOLE_BASE, assert_same_run, one_process, two_processes
from support.tiny_run import Run, assert_same
from torch import Tensor, nn

from dsd_lightning.checkpoints.folder_io import find_last
from dsd_lightning.compute.gradient_checkpointing import checkpoint_blocks
from dsd_lightning.flux.quantize import (
    LIBRARIES,
    NF4_BLOCK,
    QuantizationError,
    QuantizedLinear,
    linear_layers,
    quantize_,
    stored_bytes,
)
from dsd_lightning.models.build import build_architecture
from dsd_lightning.planning.counters import FLOAT32
from dsd_lightning.planning.meta_step import step_cost
from dsd_lightning.planning.of_config import _count, plan
from dsd_lightning.planning.plan import memory

ERROR = {"int8": 0.006, "fp8": 0.04, "nf4": 0.12}
"""Root mean square of what is rounded off normal weights, over theirs: bounds by the kind of numbers."""


@pytest.fixture(params=LIBRARIES)
def kind(request: pytest.FixtureRequest) -> str:
    pytest.importorskip(LIBRARIES[request.param])
    return str(request.param)


def layer_of(kind: str, bias: bool = True, dtype: torch.dtype = torch.float32) -> tuple[nn.Linear, QuantizedLinear]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        plain = nn.Linear(192, 48, bias=bias).to(dtype).requires_grad_(False)
    holder = nn.Sequential(plain)
    quantize_([holder], kind)
    (small,) = holder
    assert isinstance(small, QuantizedLinear)
    return plain, small


def bytes_of(module: nn.Module, trained: bool) -> int:
    return sum(p.numel() * p.element_size() for p in module.parameters() if p.requires_grad == trained)


# --- A layer.


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_weight_is_what_the_library_makes_of_it(kind: str, dtype: torch.dtype) -> None:
    plain, small = layer_of(kind, dtype=dtype)
    weight = plain.weight
    if kind == "nf4":
        import bitsandbytes

        packed = bitsandbytes.functional.quantize_4bit(weight, blocksize=NF4_BLOCK, quant_type="nf4")
        expected = bitsandbytes.functional.dequantize_4bit(*packed)
    else:
        import torchao.quantization

        name = {"int8": "Int8WeightOnlyConfig", "fp8": "Float8WeightOnlyConfig"}[kind]
        torchao.quantization.quantize_(plain, getattr(torchao.quantization, name)(set_inductor_config=False))
        expected = plain.weight.dequantize()
    assert torch.equal(small.dequantize(dtype), expected)
    error = (expected - weight).float().square().mean().sqrt() / weight.float().square().mean().sqrt()
    assert error < ERROR[kind]


def test_a_layer_is_linear_in_its_weight_and_keeps_the_small_one(kind: str) -> None:
    plain, small = layer_of(kind)
    kept: list[Tensor] = []

    def pack(tensor: Tensor) -> Tensor:
        kept.append(tensor)
        return tensor

    inputs = torch.randn(2, 5, 192, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        output = small(inputs)
    expected = F.linear(inputs, small.dequantize(torch.float32), plain.bias)
    torch.testing.assert_close(output, expected)
    towards = torch.randn_like(output)
    gradients = [torch.autograd.grad(each, inputs, towards)[0] for each in (output, expected)]
    torch.testing.assert_close(*gradients)
    assert sum(each.numel() * each.element_size() for each in kept) == stored_bytes(kind, 48, 192)
    assert bytes_of(small, trained=False) == stored_bytes(kind, 48, 192) + 48 * FLOAT32


def test_autocast_computes_in_its_own_precision(kind: str) -> None:
    _, small = layer_of(kind)
    inputs = torch.randn(3, 192, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        output = small(inputs)
    assert output.dtype == torch.bfloat16
    output.float().sum().backward()
    assert inputs.grad is not None
    assert inputs.grad.dtype == torch.float32


# --- Training.


def quantized_run(folder: Path, kind: str | None, steps: int = 3) -> Run:
    run = Run(folder, steps)
    if kind is not None:
        quantize_(run.module.architecture.shard_units(), kind)
    return run


def test_factors_learn_on_it_as_on_the_whole_base(kind: str, tmp_path: Path) -> None:
    whole, small = quantized_run(tmp_path / "whole", None).fit(), quantized_run(tmp_path / "small", kind)
    before, frozen = small.trained(), {k: v.clone() for k, v in small.module.state_dict().items() if "codes" in k}
    small.fit()
    for step, loss in whole.recorder.losses.items():
        assert small.recorder.losses[step] == pytest.approx(loss, rel=0.02 if kind == "nf4" else 0.005)
    assert small.recorder.losses != whole.recorder.losses
    assert not any(torch.equal(value, before[name]) for name, value in small.trained().items())
    after = small.module.state_dict()
    assert frozen
    assert all(torch.equal(value, after[name]) for name, value in frozen.items())


def test_a_checkpoint_is_one_of_the_whole_base(kind: str, tmp_path: Path) -> None:
    small = quantized_run(tmp_path / "small", kind).fit()
    saved = find_last(tmp_path / "small" / "checkpoints")
    assert saved is not None
    # Nothing is left to be done: what is trained is what was saved.
    assert_same(quantized_run(tmp_path / "whole", None).fit(saved).trained(), small.trained())


@pytest.mark.parametrize("row", ["controlnet-with_lora", "ip_adapter-with_lora", "reference_tokens-separate_pass"])
def test_every_trained_value_still_gets_a_gradient(row: str) -> None:
    pytest.importorskip("torchao")
    architecture = with_random_weights(ROWS[row].build(transformer(torch.float32)))
    trained = {name for name, _ in architecture.trainable()}
    quantize_(architecture.shard_units(), "int8")
    assert {name for name, _ in architecture.trainable()} == trained
    assert any(isinstance(each, QuantizedLinear) for each in architecture.modules())
    assert not any(True for unit in architecture.shard_units() for _ in linear_layers(unit))
    loss_of(architecture).backward()
    assert [name for name, value in architecture.trainable() if value.grad is None] == []


# --- Memory, as it is planned.


@pytest.mark.parametrize(("kind", "choice"), [("nf4", "none")], indirect=["kind"])
def test_the_planned_peak_is_that_of_a_step(kind: str, choice: str) -> None:
    architecture, traced = (ROWS["parallel"].build(transformer(torch.bfloat16, device)) for device in ("cpu", "meta"))
    for each in (architecture, traced.to("meta")):
        quantize_(each.shard_units(), kind)
        checkpoint_blocks(each, choice)
    trained = sum(p.numel() for _, p in architecture.trainable())
    cost = step_cost(traced, (128, 128), 32, dict.fromkeys(traced.frames, 1.0))
    assert cost.activations(2) + trained * FLOAT32 == pytest.approx(peak_of(architecture), rel=0.1)


@pytest.mark.parametrize("kind", ["nf4"], indirect=True)
def test_the_plan_counts_the_bytes_that_are_there(kind: str, tiny_base: Path, tmp_path: Path) -> None:
    config = compose_train(tmp_path, *tiny(tiny_base, f"base.quantize={kind}", "park_encoders=false"))
    planner = instantiate(config.planner)
    run = _count(config, planner)
    parts = memory(run, planner)
    assert parts["base"] == bytes_of(build_architecture(config), trained=False)
    assert parts["base"] < run.frozen * run.base_bytes
    parked = _count(compose_train(tmp_path, *tiny(tiny_base, f"base.quantize={kind}")), planner)
    assert memory(parked, planner) == parts | {"encoders": max(0.0, parts["encoders"] - parts["activations"])}


# --- Refused.


def test_what_cannot_be_is_refused_by_name(tiny_base: Path, tmp_path: Path) -> None:
    refusals: list[tuple[list[str], str]] = [
        (["base.quantize=int3"], "quantize='int3' is unknown; choose one of int8, fp8, nf4"),
        (["base.quantize=int8", "trainer/strategy=fsdp"], "choose trainer/strategy=single, ddp or adapter_shard"),
        (["base.quantize=int8", "trainer/strategy=hybrid"], "choose trainer/strategy=single, ddp or adapter_shard"),
        (["optimizer=adamw_8bit", "trainer/strategy=adapter_shard"], "choose trainer/strategy=single or ddp"),
        (["base.quantize=nf4", "arch=text_only", "arch.train_base=true", "arch.lora=null"], "arch.train_base=false"),
    ]
    for choices, message in refusals:
        config: Any = compose_train(tmp_path, f"base.model.path={tiny_base}", *choices)
        for refuse in (build_architecture, plan):
            with pytest.raises(QuantizationError, match=message):
                refuse(config)


@pytest.mark.gpu
def test_it_trains_on_a_gpu(kind: str) -> None:
    architecture = ROWS["parallel"].build(base(torch.bfloat16))
    quantize_(architecture.shard_units(), kind)
    frozen = bytes_of(architecture, trained=False)
    architecture.to("cuda")
    assert bytes_of(architecture, trained=False) == frozen
    layer = next(each for each in architecture.modules() if isinstance(each, QuantizedLinear))
    inputs = torch.randn(8, layer.in_features, device="cuda", dtype=torch.bfloat16, requires_grad=True)
    layer(inputs).float().square().sum().backward()
    assert inputs.grad is not None
    assert bool(inputs.grad.isfinite().all())


@pytest.mark.slow
def test_two_processes_equal_one_on_a_base_in_8_bits(tmp_path: Path) -> None:
    pytest.importorskip("torchao")
    alone = one_process("parallel", tmp_path / "alone", 3, quantize="int8")
    together = two_processes("int8", tmp_path / "alone", tmp_path / "together")
    for rank in (0, 1):
        for strategy in WHOLE_BASE:
            assert_same_run(together[f"rank{rank}"][strategy], alone)
