"""A device is found by its name, and one that is not there is refused."""

from __future__ import annotations

import pytest
import torch

from dsd_lightning.compute.device import DeviceError, find_device


def test_the_processor_is_always_there() -> None:
    assert find_device("cpu", "device") == torch.device("cpu")
    assert find_device(torch.device("cpu")) == torch.device("cpu")


def test_nothing_and_auto_take_the_gpu_if_there_is_one() -> None:
    expected = "cuda" if torch.cuda.is_available() else "cpu"
    assert find_device(None).type == find_device("auto").type == expected


@pytest.mark.parametrize("name", ["gpu0", "meta", "", "cpu:x", "nvidia", "cuda 1"])
def test_what_names_no_device_is_refused_with_the_remedy(name: str) -> None:
    with pytest.raises(DeviceError, match=r"--device=.* is no device: give cpu, cuda or cuda:NUMBER"):
        find_device(name, "--device")


@pytest.mark.parametrize("name", ["cuda:99", "xpu"])
def test_a_gpu_that_is_not_there_is_refused(name: str) -> None:
    with pytest.raises(DeviceError, match=f"device={name}"):
        find_device(name)
