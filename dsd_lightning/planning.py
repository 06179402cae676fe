"""Does a training run fit, and how long will it take? Arithmetic over counts; nothing is loaded and no GPU is needed."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from dsd_lightning.flux.cost import FLOAT32, Cost

GIB = 2**30
TERA = 1e12
DAY = 86_400.0

ENCODERS = ("text_encoder", "text_encoder_2", "vae")
"""Parts of a base, beside its transformer, that stay in memory while training."""


@dataclass(frozen=True)
class Planner:
    """What the plan assumes of the machine (`planner` in the configuration).

    Attributes:
        gpus: number of GPUs; None: what the trainer is told.
        gpu_memory_gib: memory of one that is free for the run, GiB.
        peak_tflops: of one GPU, in the precision of training, TFLOP/s.
        mfu: share of the peak that the model's own operations reach.
        resolution: height, width of a frame, pixels; None: the data source's.
        pixels_per_token: side of the square of pixels that is one image token.
        encoder_parameters: of both text encoders and the VAE; None: counted in the base's folder.
        optimizer_values: values that the optimizer keeps for each trained one; AdamW keeps 2.
    """

    gpu_memory_gib: float | int
    peak_tflops: float | int
    mfu: float
    gpus: int | None = None
    resolution: Sequence[int] | None = None
    pixels_per_token: int = 16
    encoder_parameters: int | None = None
    optimizer_values: int = 2

    def __post_init__(self) -> None:
        for name in ("gpu_memory_gib", "peak_tflops"):
            if getattr(self, name) <= 0:
                raise ValueError(f"planner.{name}={getattr(self, name)} must be > 0")
        if not 0 < self.mfu <= 1:
            raise ValueError(f"planner.mfu={self.mfu} must be in (0, 1]; tuned LoRA training reaches about 0.4")
        if self.gpus is not None and self.gpus < 1:
            raise ValueError(f"planner.gpus={self.gpus} must be at least 1, or null for what the trainer is told")

    def frame_tokens(self, resolution: Sequence[int]) -> int:
        """Return the image tokens of a frame.

        Raises:
            ValueError: if they do not divide it.
        """
        height, width = resolution
        if height % self.pixels_per_token or width % self.pixels_per_token:
            raise ValueError(f"a frame of {height} x {width} is not made of squares of {self.pixels_per_token} pixels")
        return height * width // self.pixels_per_token**2


def count_stored(base: Path, parts: Iterable[str]) -> int:
    """Return the number of values in the safetensors files of a base's parts; only their headers are read.

    Raises:
        ValueError: if a part has no such file here, as that of a hub id has not.
    """
    count = 0
    for part in parts:
        files = sorted((base / part).glob("*.safetensors"))
        if not files:
            raise ValueError(f"{base / part} holds no safetensors file to count: give planner.encoder_parameters")
        for file in files:
            with file.open("rb") as stream:
                header = json.loads(stream.read(int.from_bytes(stream.read(8), "little")))
            count += sum(math.prod(facts["shape"]) for name, facts in header.items() if name != "__metadata__")
    return count


@dataclass(frozen=True)
class Run:
    """What is counted of a configuration.

    Attributes:
        frozen, trained: parameters.
        base_bytes: bytes of a frozen parameter.
        encoders: parameters of the text encoders and the VAE.
        averaged: whether averages (EMA) of the trained parameters are kept.
        cost: of one sample.
        batch_size: pairs a batch, all devices together.
        accumulate: batches an optimizer step.
        steps: optimizer steps.
        gpus: devices; each holds all of the model (data parallel).
        rank: of the factors; None without any.
    """

    frozen: int
    trained: int
    base_bytes: int
    encoders: int
    averaged: bool
    cost: Cost
    batch_size: int
    accumulate: int
    steps: int
    gpus: int
    rank: int | None = None

    def __post_init__(self) -> None:
        if self.batch_size % self.gpus:
            raise ValueError(
                f"data.datamodule.batch_size={self.batch_size} is not divisible among {self.gpus} GPUs; nearest is "
                f"{max(1, round(self.batch_size / self.gpus)) * self.gpus}"
            )


def memory(run: Run, planner: Planner) -> dict[str, float]:
    """Return the peak memory of one device by part, bytes. Trained values are float32, as are their gradients and moments."""
    per_device = run.batch_size // run.gpus
    return {
        "base": float(run.frozen * run.base_bytes),
        "adapters": float(run.trained * FLOAT32),
        "gradients": float(run.trained * FLOAT32),
        "optimizer": float(run.trained * FLOAT32 * planner.optimizer_values),
        "averages": float(run.trained * FLOAT32 * run.averaged),
        "encoders": float(run.encoders * run.base_bytes),
        "activations": run.cost.activations * per_device,
    }


def fits(run: Run, planner: Planner) -> bool:
    """Return whether a device's memory holds its peak."""
    return sum(memory(run, planner).values()) <= planner.gpu_memory_gib * GIB


def step_seconds(run: Run, planner: Planner) -> float:
    """Return the time of an optimizer step, seconds; encoding and data reading not counted."""
    return run.cost.training * run.batch_size * run.accumulate / (run.gpus * planner.peak_tflops * TERA * planner.mfu)


def checkpoint_bytes(run: Run, planner: Planner) -> int:
    """Return the size of a checkpoint: trained values, averages and the optimizer's, float32; never the base."""
    return run.trained * FLOAT32 * (1 + run.averaged + planner.optimizer_values)


def alternatives(run: Run, planner: Planner) -> Iterator[str]:
    """Yield the nearest settings that would fit, each with as many pairs an optimizer step as before."""
    pairs = run.batch_size * run.accumulate
    changed = {"": run}
    if run.averaged:
        changed["callbacks.ema=null"] = replace(run, averaged=False)
    if run.base_bytes == FLOAT32:
        changed["base.model.dtype=bfloat16"] = replace(run, base_bytes=FLOAT32 // 2)
    for setting, other in changed.items():
        for per_device in range(run.batch_size // run.gpus, 0, -1):
            batch = per_device * run.gpus
            candidate = replace(other, batch_size=batch, accumulate=pairs // batch)
            if pairs % batch == 0 and fits(candidate, planner):
                values = [
                    f"data.datamodule.batch_size={batch}" if batch != run.batch_size else "",
                    f"trainer.accumulate_grad_batches={pairs // batch}" if pairs // batch != run.accumulate else "",
                ]
                yield " ".join(each for each in (setting, *values) if each)
                break
    one = replace(run, batch_size=run.gpus, accumulate=max(1, pairs // run.gpus))
    if fits(one, planner):
        return
    rank = run.rank
    while rank is not None and rank > 1:
        rank //= 2
        # The activations of the larger rank, which bound those of the smaller.
        if fits(replace(one, trained=run.trained * rank // (run.rank or 1)), planner):
            yield f"arch.lora.rank={rank} data.datamodule.batch_size={one.batch_size} " + (
                f"trainer.accumulate_grad_batches={one.accumulate}"
            )
            break
    yield f"a device of {sum(memory(one, planner).values()) / GIB:.1f} GiB, or fewer arch.lora.targets"


def table(run: Run, planner: Planner) -> str:
    """Return the plan as lines of text."""
    parts = memory(run, planner)
    peak, seconds = sum(parts.values()), step_seconds(run, planner)
    verdict = "fits" if peak <= planner.gpu_memory_gib * GIB else "DOES NOT FIT"
    rows: Mapping[str, str] = {
        "parameters": f"{run.frozen + run.trained:,} ({run.trained:,} trained)",
        "FLOPs a sample": f"{run.cost.forward / TERA:.4g} T forward, {run.cost.training / TERA:.4g} T in training",
        "pairs": f"{run.batch_size // run.gpus} a device and batch, {run.batch_size * run.accumulate} an optimizer step, "
        f"{run.gpus} GPUs (every one holds the whole model)",
        **{f"memory: {name}": f"{value / GIB:8.2f} GiB" for name, value in parts.items()},
        "memory: peak": f"{peak / GIB:8.2f} GiB of {planner.gpu_memory_gib:g}: {verdict} (activations are an estimate)",
        "optimizer step": f"{seconds:.3g} s at an MFU of {planner.mfu:g} of {planner.peak_tflops:g} TFLOP/s",
        "run": f"{run.steps:,} steps: {seconds * run.steps / DAY:.3g} days",
        "checkpoint": f"{checkpoint_bytes(run, planner) / 1e9:.3g} GB",
    }
    lines = [f"{name:<22}{value}" for name, value in rows.items()]
    if verdict != "fits":
        lines += ["would fit:", *(f"  {each}" for each in alternatives(run, planner))]
    return "\n".join(lines)
