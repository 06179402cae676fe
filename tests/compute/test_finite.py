"""Tensors with NaN or infinite values are refused by name."""

from __future__ import annotations

import math

import pytest
import torch

from dsd_lightning.compute.finite import NonFiniteError, require_finite


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_one_value_that_is_not_finite_is_enough(value: float, dtype: torch.dtype) -> None:
    tensors = {"first": torch.ones(3, dtype=dtype), "second": torch.tensor([1.0, value], dtype=dtype)}
    with pytest.raises(NonFiniteError, match=r"the weights: 'second' holds NaN or infinite values; take others"):
        require_finite(tensors, "the weights", "take others")


def test_finite_values_and_whole_numbers_pass() -> None:
    largest = torch.finfo(torch.float32).max
    tensors = {"a": torch.tensor([largest, -largest]), "b": torch.arange(3), "c": torch.ones(2).to(torch.float8_e4m3fn)}
    require_finite(tensors, "the weights", "take others")
