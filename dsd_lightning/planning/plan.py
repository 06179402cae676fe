"""Computes from counts whether a training run fits and how long it takes; nothing is loaded, no GPU is needed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from dsd_lightning.planning.counters import FLOAT32, Cost
from dsd_lightning.planning.gpus import find_gpu

GIB = 2**30
TERA = 1e12
DAY = 86_400.0

ENCODERS = ("text_encoder", "text_encoder_2", "vae")
"""Parts of a base, beside its transformer, that stay in memory while training."""


class DoesNotFitError(ValueError):
    """The run needs more memory than a device has; the message is its plan, with settings that would fit."""


class CannotPlanError(ValueError):
    """A configuration that leaves open what a plan has to know; the message names the setting."""


@dataclass(frozen=True)
class Planner:
    """Assumptions about the machine (`planner` in the configuration).

    Attributes:
        gpu: its name, a key of `planning.gpus.GPUS`; None: `gpu_memory_gib` and `peak_tflops` say all.
        gpus: number of GPUs; None: as the trainer is configured.
        gpu_memory_gib: memory of one that is free for the run, GiB; None: that of `gpu`.
        peak_tflops: of one GPU, in the precision of training, TFLOP/s; None: that of `gpu`.
        mfu: share of the peak that is reached by all operations, recomputed ones included.
        resolution: height, width of a frame, pixels; None: the data source's.
        pixels_per_token: side of the square of pixels that is one image token.
        encoder_parameters: of both text encoders and the VAE; None: counted in the base's folder.
        optimizer_bytes: bytes that the optimizer keeps for each trained value; AdamW keeps two float32 moments.
        reserve: share of the free memory that `gradient_checkpointing=auto` leaves to kernels and the allocator, in [0, 1).
    """

    mfu: float
    gpu: str | int | None = None
    gpu_memory_gib: float | int | None = None
    peak_tflops: float | int | None = None
    gpus: int | None = None
    resolution: Sequence[int] | None = None
    pixels_per_token: int = 16
    encoder_parameters: int | None = None
    optimizer_bytes: float | int = 8
    reserve: float | int = 0.08

    def __post_init__(self) -> None:
        if self.gpu is not None:
            find_gpu(self.gpu)
        for name in ("gpu_memory_gib", "peak_tflops"):
            value = getattr(self, name)
            if value is None and self.gpu is None:
                raise ValueError(f"planner.{name}=null with planner.gpu=null: give one of them")
            if value is not None and value <= 0:
                raise ValueError(f"planner.{name}={value} must be > 0")
        if not 0 < self.mfu <= 1:
            raise ValueError(f"planner.mfu={self.mfu} must be in (0, 1]; tuned LoRA training reaches about 0.4")
        if not 0 <= self.reserve < 1:
            raise ValueError(f"planner.reserve={self.reserve} must be in [0, 1)")
        if self.gpus is not None and self.gpus < 1:
            raise ValueError(f"planner.gpus={self.gpus} must be at least 1, or null for the trainer's")

    @property
    def free_gib(self) -> float:
        """Memory of a GPU that is free for the run, GiB."""
        return float(self.gpu_memory_gib if self.gpu_memory_gib is not None else find_gpu(self.gpu or "").free_gib)

    @property
    def tflops(self) -> float:
        """Peak throughput of a GPU, TFLOP/s."""
        return float(self.peak_tflops if self.peak_tflops is not None else find_gpu(self.gpu or "").peak_tflops)

    def frame_size(self, resolution: Sequence[int]) -> tuple[int, int]:
        """Return the (height, width) of a frame, pixels.

        Raises:
            ValueError: if tokens do not divide it.
        """
        height, width = resolution
        if height % self.pixels_per_token or width % self.pixels_per_token:
            raise ValueError(f"a frame of {height} x {width} is not made of squares of {self.pixels_per_token} pixels")
        return height, width


@dataclass(frozen=True)
class Sharding:
    """How the strategy shards a model.

    Attributes:
        devices: among which it is sharded; 1 for replicas that are not.
        frozen: whether the frozen base is sharded too, or what is trained alone.
        gathered: share of what is sharded that is all-gathered on a device at its peak: two blocks of all, or 1.
    """

    devices: int = 1
    frozen: bool = False
    gathered: float = 1.0

    def share(self) -> float:
        """Return the share of a sharded part that a device holds."""
        return 1 / self.devices


@dataclass(frozen=True)
class Run:
    """Counts of a configuration.

    Attributes:
        frozen, trained: parameters.
        base_bytes: bytes of a frozen parameter.
        encoders: parameters of the text encoders and the VAE.
        parked: whether they wait in main memory during a step.
        ema: whether EMA weights are kept.
        costs: of one sample, by the choice of `gradient_checkpointing`; the run's own is the first.
        batch_size: pairs a batch, all devices together.
        accumulate: batches an optimizer step.
        steps: optimizer steps.
        gpus: devices.
        sharding: how the model is sharded.
        rank: of the factors; None without any.
        quantize: how the linear layers of the base's blocks are stored (`base.quantize`); None: as all frozen parameters.
        linear: parameters of those layers' weights.
        stored: bytes of them, by the choice of `quantize`.
        frame: (height, width) of a frame, pixels.
        optimizer: its name and learning rates.
    """

    frozen: int
    trained: int
    base_bytes: int
    encoders: int
    ema: bool
    costs: Mapping[str, Cost]
    batch_size: int
    accumulate: int
    steps: int
    gpus: int
    sharding: Sharding = field(default_factory=Sharding)
    rank: int | None = None
    parked: bool = False
    quantize: str | None = None
    linear: int = 0
    stored: Mapping[str, int] = field(default_factory=dict)
    frame: tuple[int, int] | None = None
    optimizer: str = ""

    def __post_init__(self) -> None:
        if self.batch_size % self.gpus:
            raise ValueError(
                f"data.datamodule.batch_size={self.batch_size} is not divisible among {self.gpus} GPUs; nearest is "
                f"{max(1, round(self.batch_size / self.gpus)) * self.gpus}"
            )

    @property
    def base(self) -> float:
        """Bytes of the frozen parameters."""
        if self.quantize is None:
            return float(self.frozen * self.base_bytes)
        return float((self.frozen - self.linear) * self.base_bytes + self.stored[self.quantize])

    @property
    def gradient_checkpointing(self) -> str:
        """The run's own choice of checkpointed blocks."""
        return next(iter(self.costs))

    @property
    def cost(self) -> Cost:
        """Of one sample."""
        return self.costs[self.gradient_checkpointing]


def memory(run: Run, planner: Planner) -> dict[str, float]:
    """Return the peak memory of one device by part, bytes. Trained values are float32, as are their gradients and moments."""
    share = run.sharding.share()
    base, trained = run.base, float(run.trained * FLOAT32)
    sharded = trained + base * run.sharding.frozen
    activations, encoders = (
        run.cost.activations(run.batch_size // run.gpus, share),
        float(run.encoders * run.base_bytes),
    )
    parts = {
        "base": base * (share if run.sharding.frozen else 1),
        "adapters": trained * share,
        "gradients": trained * share,
        "optimizer": run.trained * planner.optimizer_bytes * share,
        "EMA weights": trained * run.ema * share,
        # Parked, they come between steps, in the activations' place.
        "encoders": max(0.0, encoders - activations) if run.parked else encoders,
        "activations": activations,
    }
    if run.sharding.devices > 1:
        parts["all-gathered"] = sharded * run.sharding.gathered
    return parts


def fits(run: Run, planner: Planner) -> bool:
    """Return whether a device's memory holds its peak."""
    return sum(memory(run, planner).values()) <= planner.free_gib * GIB


def step_seconds(run: Run, planner: Planner) -> float:
    """Return the time of an optimizer step, seconds; encoding, sending and data reading not counted."""
    return run.cost.training * run.batch_size * run.accumulate / (run.gpus * planner.tflops * TERA * planner.mfu)


def checkpoint_bytes(run: Run, planner: Planner) -> float:
    """Return the size of a checkpoint: trained values, EMA weights and the optimizer's state; never the base."""
    return float(run.trained * (FLOAT32 * (1 + run.ema) + planner.optimizer_bytes))


def alternatives(run: Run, planner: Planner) -> Iterator[str]:
    """Yield the nearest settings that would fit, each with as many pairs an optimizer step as before."""
    pairs = run.batch_size * run.accumulate
    changed = {"": run}
    for choice, cost in list(run.costs.items())[1:]:
        changed[f"gradient_checkpointing={choice}"] = replace(run, costs={choice: cost})
    if run.ema:
        changed["callbacks.ema=null"] = replace(run, ema=False)
    if run.base_bytes == FLOAT32:
        changed["base.model.dtype=bfloat16"] = replace(run, base_bytes=FLOAT32 // 2)
    for kind in ("int8", "nf4") if run.stored and not run.sharding.frozen else ():
        if kind != run.quantize:
            changed[f"base.quantize={kind}"] = replace(run, quantize=kind)
    if run.sharding.devices == 1 and run.gpus > 1:
        for name, sharding in (("adapter_shard", Sharding(run.gpus)), ("fsdp", Sharding(run.gpus, True, 0.1))):
            changed[f"trainer/strategy={name}"] = replace(run, sharding=sharding)
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
    verdict = "fits" if peak <= planner.free_gib * GIB else "DOES NOT FIT"
    held = "the whole model" if run.sharding.devices == 1 else f"1/{run.sharding.devices} of "
    if run.sharding.devices > 1:
        held += "the model" if run.sharding.frozen else "what is trained, and the full base"
    gpu = find_gpu(planner.gpu).title if planner.gpu is not None else "as planner.gpu_memory_gib and peak_tflops say"
    rows: Mapping[str, str] = {
        "GPU": gpu,
        **({"frame": f"{run.frame[0]} x {run.frame[1]} pixels"} if run.frame else {}),
        **({"optimizer": run.optimizer} if run.optimizer else {}),
        "parameters": f"{run.frozen + run.trained:,} ({run.trained:,} trained)",
        "FLOPs a sample": f"{run.cost.forward / TERA:.4g} T forward, {run.cost.training / TERA:.4g} T in training "
        f"(gradient_checkpointing={run.gradient_checkpointing})",
        "pairs": f"{run.batch_size // run.gpus} a device and batch, {run.batch_size * run.accumulate} an optimizer step, "
        f"{run.gpus} GPUs (each holds {held})",
        **{f"memory: {name}": f"{value / GIB:8.2f} GiB" for name, value in parts.items()},
        "memory: peak": f"{peak / GIB:8.2f} GiB of {planner.free_gib:.1f}: {verdict} (the allocator needs some more)",
        "optimizer step": f"{seconds:.3g} s at an MFU of {planner.mfu:g} of {planner.tflops:g} TFLOP/s",
        "run": f"{run.steps:,} steps: {seconds * run.steps / DAY:.3g} days",
        "checkpoint": f"{checkpoint_bytes(run, planner) / 1e9:.3g} GB",
    }
    lines = [f"{name:<22}{value}" for name, value in rows.items()]
    if verdict != "fits":
        lines += ["would fit:", *(f"  {each}" for each in alternatives(run, planner))]
    return "\n".join(lines)
