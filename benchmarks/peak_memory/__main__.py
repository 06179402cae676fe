"""Compares the planned peak of memory with that of a training step: on a GPU the allocator's, on a CPU that of all tensors.

python -m benchmarks.peak_memory [--base small|flux_dev] [--batch 2] [--gradient-checkpointing all] [--out FILE.json]

The model has random weights; its pairs are random encodings, so that no encoder takes memory.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from benchmarks.measure import facts, write
from benchmarks.random_models import LATENTS, base_dtype, batch_of, meta_architecture, module_of
from benchmarks.training_step import bare_step, parser_of
from dsd_lightning.compute.gradient_checkpointing import checkpoint_blocks
from dsd_lightning.module import DiffusionSelfDistillation
from dsd_lightning.planning.counters import LiveTensors
from dsd_lightning.planning.meta_step import step_cost
from dsd_lightning.planning.plan import GIB, Planner, Run, memory

PIXELS_PER_LATENT = 8


def planned(args: argparse.Namespace) -> dict[str, float]:
    """Return the plan of the step, bytes by part."""
    architecture = meta_architecture(args.base, args.rank, base_dtype(args))
    checkpoint_blocks(architecture, args.gradient_checkpointing)
    frozen = sum(p.numel() for p in architecture.parameters() if not p.requires_grad)
    trained = sum(p.numel() for _, p in architecture.trainable())
    side, words = LATENTS[args.base]
    cost = step_cost(
        architecture,
        (side * PIXELS_PER_LATENT, side * PIXELS_PER_LATENT),
        words,
        {"reference": 0.25, "target": 1.0},
        pixels_per_token=2 * PIXELS_PER_LATENT,
        autocast=base_dtype(args) == torch.bfloat16,
    )
    run = Run(
        frozen=frozen,
        trained=trained,
        base_bytes=base_dtype(args).itemsize,
        encoders=0,
        ema=False,
        costs={args.gradient_checkpointing: cost},
        batch_size=args.batch,
        accumulate=1,
        steps=1,
        gpus=1,
    )
    return memory(run, Planner(mfu=0.4, gpu="h100"))


def measured(args: argparse.Namespace, device: torch.device) -> float:
    """Return the peak of a step whose optimizer has its moments already, bytes."""
    batch = batch_of(args.base, args.batch, device, base_dtype(args))
    module = module_of(args.base, batch, args, device)
    turn = bare_step(module, batch, device)
    turn.step()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        turn.step()
        return float(torch.cuda.max_memory_allocated(device))
    with LiveTensors([*_state(module), *turn.state()]) as live:
        turn.step()
    return float(live.peak)


def _state(module: DiffusionSelfDistillation) -> Iterator[Tensor]:
    yield from module.parameters()
    yield from module.buffers()


def main(arguments: Sequence[str] | None = None) -> None:
    """Plan and measure, and tell the ratio."""
    args = parser_of("peak_memory", __doc__).parse_args(arguments)
    device = torch.device(args.device)
    parts = planned(args)
    peak = measured(args, device)
    write(
        args.out,
        {
            "what": "peak memory of a training step on cached encodings, planned and measured",
            "settings": {key: value for key, value in vars(args).items() if key != "out"},
            **facts(device),
            "planned_gib": {name: value / GIB for name, value in parts.items()},
            "peak_gib": peak / GIB,
            "peak_over_planned": peak / sum(parts.values()),
        },
    )


if __name__ == "__main__":
    main()
