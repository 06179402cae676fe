"""The fused LoRA layer computes what peft's does, with less kept for the backward pass."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.lora.layer import Linear as PeftLinear
from support.commands import environment
from support.models.lora_layers import WIDTH, fused, results, with_factors
from support.processes import prepared
from torch import Tensor, nn

from dsd_lightning.flux.quantize import QuantizedLinear
from dsd_lightning.planning.counters import MODEL_ATTENTION, Operations
from dsd_lightning.randomness import normal


@pytest.mark.parametrize("shape", [(5,), (2, 3), (2, 1, 4)])
@pytest.mark.parametrize("bias", [True, False])
def test_values_and_gradients_are_those_of_peft(shape: tuple[int, ...], bias: bool) -> None:
    model = with_factors(bias=bias)
    expected = results(model, shape, torch.float32, False)
    for name, value in results(fused(model), shape, torch.float32, False).items():
        torch.testing.assert_close(value, expected[name], atol=1e-5, rtol=1e-5, msg=name)


@pytest.mark.parametrize("autocast", [True, False])
def test_a_bfloat16_base_loses_no_more_than_rounding(autocast: bool) -> None:
    exact = results(with_factors(), (16,), torch.float32, False)
    half = fused(with_factors(torch.bfloat16))
    for name, value in results(half, (16,), torch.bfloat16, autocast).items():
        assert value.dtype == (torch.float32 if "lora_" in name else torch.bfloat16), name
        error = (value.float() - exact[name]).norm() / exact[name].norm()
        assert error < 0.02, name


def test_a_quantised_base_is_dequantised_for_both_passes() -> None:
    model = with_factors()
    layer = model[0]  # type: ignore[index]
    weight = layer.base_layer.weight
    scale = weight.abs().amax(dim=1, keepdim=True) / 127
    stored = QuantizedLinear("int8", (weight / scale).round().to(torch.int8), scale, layer.base_layer.bias)
    layer.base_layer.weight = nn.Parameter(stored.dequantize(torch.float32), requires_grad=False)
    expected = results(model, (5,), torch.float32, False)
    model.zero_grad()
    layer.base_layer = stored
    for name, value in results(fused(model), (5,), torch.float32, False).items():
        torch.testing.assert_close(value, expected[name], atol=1e-5, rtol=1e-5, msg=name)


def _two_adapters(model: nn.Module) -> None:
    inject_adapter_in_model(LoraConfig(r=2, target_modules=["0"], init_lora_weights=False), model, adapter_name="other")
    layer = next(each for each in model.modules() if isinstance(each, PeftLinear))
    layer.set_adapter(["default", "other"])


def _merged(model: nn.Module) -> None:
    next(each for each in model.modules() if isinstance(each, PeftLinear)).merge()


def _disabled(model: nn.Module) -> None:
    next(each for each in model.modules() if isinstance(each, PeftLinear)).enable_adapters(False)


def _trained_base(model: nn.Module) -> None:
    model.requires_grad_(True)


@pytest.mark.parametrize("change", [_two_adapters, _merged, _disabled, _trained_base])
def test_all_else_is_what_peft_does(change: Callable[[nn.Module], None]) -> None:
    model = with_factors()
    change(model)
    x = normal((5, WIDTH), "x")
    torch.testing.assert_close(fused(model)(x), model(x), atol=1e-5, rtol=1e-5)


def test_dropout_is_what_peft_does() -> None:
    model = with_factors(lora_dropout=0.5).train()
    changed = fused(model)
    x = normal((5, WIDTH), "x")
    torch.manual_seed(0)
    expected = model(x)
    torch.manual_seed(0)
    torch.testing.assert_close(changed(x), expected)


def kept_bytes(model: nn.Module, rows: int) -> int:
    """Return the bytes beside parameters that autograd keeps after a forward pass under bfloat16 autocast."""
    parameters = {p.untyped_storage().data_ptr() for p in model.parameters()}
    storages: dict[int, int] = {}

    def pack(value: Tensor) -> Tensor:
        storage = value.untyped_storage()
        if storage.data_ptr() not in parameters:
            storages[storage.data_ptr()] = storage.nbytes()
        return value

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda value: value), torch.autocast("cpu", torch.bfloat16):
        output = model(torch.zeros(rows, WIDTH, dtype=torch.bfloat16, requires_grad=True))
    del output
    return sum(storages.values())


def test_the_input_and_its_product_with_a_factor_are_all_that_is_kept() -> None:
    model = with_factors(torch.bfloat16)
    rows = 64
    assert kept_bytes(fused(model), rows) == 2 * rows * (WIDTH + 4)
    assert kept_bytes(model, rows) > 2 * rows * (WIDTH + 4)


def test_its_operations_are_counted_as_those_of_peft() -> None:
    model = with_factors()
    counts = []
    for each in (model, fused(model)):
        with Operations(MODEL_ATTENTION) as counted:
            results(each, (8,), torch.float32, False)
        counts.append(counted.total)
    assert counts[0] == counts[1] > 0


def test_a_graph_can_be_used_twice() -> None:
    model = fused(with_factors())
    loss = model(normal((5, WIDTH), "x").requires_grad_()).square().sum()
    parameters = [p for p in model.parameters() if p.requires_grad]
    first = torch.autograd.grad(loss, parameters, retain_graph=True)
    second = torch.autograd.grad(loss, parameters)
    for one, other in zip(first, second, strict=True):
        assert torch.equal(one, other)


COMPILED = """
import torch
from support.models.lora_layers import fused, results, with_factors

for dtype, autocast in ((torch.float32, False), (torch.bfloat16, True)):
    model = fused(with_factors(dtype))
    expected = results(model, (5,), dtype, autocast)
    model.zero_grad()
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    for name, value in results(compiled, (5,), dtype, autocast).items():
        torch.testing.assert_close(value, expected[name.removeprefix("_orig_mod.")], msg=name)
"""


@pytest.mark.long
def test_it_can_be_compiled() -> None:
    # In a process of its own: the suite's checks of array shapes cannot be traced.
    setting = environment(PYTHONPATH=str(Path(__file__).parents[1]))
    prepared.run([sys.executable, "-c", COMPILED], env=setting).check_returncode()
