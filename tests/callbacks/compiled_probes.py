"""Trains with compiled blocks and probes, as a script: the test suite's shape checks cannot be compiled.

Prints as JSON how many graphs had been compiled after each probe (before and after training) and after each step.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from support.commands import SOURCE, compose_train, tiny_miniature
from torch import nn

from callbacks.probes import MiniatureProbe
from dsd_lightning.training.run import train


def main(base: str, run_dir: str, backend: str) -> None:
    """Train three steps of 8 pairs, and probe 16."""
    torch.set_num_threads(1)
    stock = nn.Module.compile
    nn.Module.compile = lambda block, **options: stock(block, backend=backend, **options)  # type: ignore[method-assign]
    graphs: dict[str, list[int]] = {"probe": [], "step": []}

    def counted(kind: str, hook: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            result = hook(*arguments, **options)
            graphs[kind].append(torch._dynamo.utils.counters["stats"]["unique_graphs"])
            return result

        return call

    MiniatureProbe.probe = counted("probe", MiniatureProbe.probe)  # type: ignore[method-assign]
    MiniatureProbe.on_train_batch_end = counted("step", MiniatureProbe.on_train_batch_end)  # type: ignore[method-assign]
    overrides = [
        *tiny_miniature(Path(base)),
        f"{SOURCE}.pairs=16",
        "data.datamodule.batch_size=8",
        "callbacks.probe.samples=16",
        "callbacks.samples=null",
        "trainer.max_steps=3",
        "trainer.precision=bf16-mixed",
        "compile=true",
        "logger=csv",
    ]
    config = compose_train(Path(run_dir), *overrides, as_it_is=True)
    train(config, Path(run_dir))
    sys.stdout.write("\n" + json.dumps(graphs))


if __name__ == "__main__":
    main(*sys.argv[1:])
