"""Compares two ways of doing the same work fairly, and records the machine with the results."""

from __future__ import annotations

import json
import platform
import random
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from functools import wraps
from importlib.metadata import version
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import torch

from dsd_lightning.cli.errors import REFUSED, message_for_user

PACKAGES = ("torch", "diffusers", "peft", "lightning", "webdataset")


def interleaved(
    turns: Mapping[str, Callable[[], object]], repeats: int, device: torch.device, warm_up: int = 2
) -> dict[str, list[float]]:
    """Return the seconds of every call, the turns alternating in one process, each round in another order."""
    order = random.Random(0)
    for _ in range(warm_up):
        for turn in turns.values():
            turn()
    taken: dict[str, list[float]] = {name: [] for name in turns}
    for _ in range(repeats):
        names = list(turns)
        order.shuffle(names)
        for name in names:
            wait(device)
            start = time.perf_counter()
            turns[name]()
            wait(device)
            taken[name].append(time.perf_counter() - start)
    return taken


def wait(device: torch.device) -> None:
    """Wait until the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def ratio(ours: Sequence[float], theirs: Sequence[float], draws: int = 4000) -> dict[str, float]:
    """Return the median of the rounds' ratios ours/theirs and its 95% interval, by bootstrap over the rounds."""
    rng = random.Random(0)
    each = [one / other for one, other in zip(ours, theirs, strict=True)]
    medians = sorted(median(rng.choices(each, k=len(each))) for _ in range(draws))
    return {"ratio": median(each), "low": medians[int(0.025 * draws)], "high": medians[int(0.975 * draws) - 1]}


def spread(seconds: Sequence[float]) -> dict[str, float]:
    """Return the median and the quartiles."""
    low, _, high = quantiles(seconds, n=4)
    return {"median": median(seconds), "quartile_1": low, "quartile_3": high, "rounds": len(seconds)}


def facts(device: torch.device) -> dict[str, Any]:
    """Return the device's name, the versions and the commit that metrics belong to."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else _cpu_name()
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    return {
        "device": name,
        "threads": torch.get_num_threads(),
        "commit": commit.stdout.strip() or None,
        "versions": {package: version(package) for package in PACKAGES},
    }


def _cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    return next((line.partition(": ")[2] for line in lines if line.startswith("model name")), platform.processor())


def write(path: Path | None, results: Mapping[str, Any]) -> None:
    """Print the results as JSON, and write them to `path` if one is given."""
    text = json.dumps(results, indent=1)
    print(text)
    if path is not None:
        path.write_text(text + "\n")


def refusing(main: Callable[[list[str] | None], int]) -> Callable[[list[str] | None], int]:
    """Return `main`, with the message of an input that was refused on stderr and exit code 2 in place of the error."""

    @wraps(main)
    def command(arguments: list[str] | None = None) -> int:
        try:
            return main(arguments)
        except Exception as error:
            message = message_for_user(error)
            if message is None:
                raise
            print(f"error: {message}", file=sys.stderr)
            return REFUSED

    return command
