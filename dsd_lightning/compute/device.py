"""Finds the device that a setting names, refuses one that is not there, and sends values to it."""

from __future__ import annotations

import torch
from torch import Tensor

KINDS = ("cpu", "cuda", "mps", "xpu")
"""Kinds of devices that models are placed on."""

_AUTO = "auto"


class DeviceError(ValueError):
    """A device that is not there; the message names the setting, its value and the remedy."""


def find_device(name: str | torch.device | None, setting: str = "device") -> torch.device:
    """Return the device of a name such as "cpu", "cuda" or "cuda:1"; the GPU if there is one for None and "auto".

    Args:
        name: the setting's value.
        setting: its name, for the message.

    Raises:
        DeviceError: no device has this name, or it is not in this machine.
    """
    if name is None or name == _AUTO:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except (RuntimeError, TypeError):
        device = None
    if device is None or device.type not in KINDS:
        raise DeviceError(f"{setting}={name} is no device: give cpu, cuda or cuda:NUMBER, or leave it out")
    if device.type == "cpu":
        return device
    module = torch.get_device_module(device)
    count = int(module.device_count()) if module.is_available() else 0
    if count == 0:
        raise DeviceError(f"{setting}={name}: there is no GPU here; leave it out, or give cpu")
    if (device.index or 0) >= count:
        raise DeviceError(f"{setting}={name}: there are {count} GPUs here, counted from 0; give one of these, or cpu")
    return device


def sent(values: Tensor, device: torch.device) -> Tensor:
    """Return `values` on `device`; to CUDA they go from page-locked memory, so that this process need not wait for the copy."""
    if device.type == "cuda" and values.device.type == "cpu":
        return values.pin_memory().to(device, non_blocking=True)
    return values.to(device)
