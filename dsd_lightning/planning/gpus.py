"""Peak throughput and memory of the GPUs that a plan can be made for.

Throughput is of dense bfloat16 products with float32 sums, as the makers state it: NVIDIA's data sheets of A100, H100, H200,
HGX B200, L40S and RTX 6000 Ada; its whitepapers of GA102 (3090), AD102 (4090) and the RTX Blackwell architecture (5090).
"""

from __future__ import annotations

from dataclasses import dataclass

CONTEXT_GIB = 1.5
"""Memory that CUDA's context and libraries take, GiB."""


@dataclass(frozen=True)
class Gpu:
    """What a plan needs of a GPU.

    Attributes:
        title: its name in a plan.
        peak_tflops: dense bfloat16, TFLOP/s.
        memory_gib: that `nvidia-smi` shows, GiB.
    """

    title: str
    peak_tflops: float
    memory_gib: float

    @property
    def free_gib(self) -> float:
        """Memory that is left to a run."""
        return self.memory_gib - CONTEXT_GIB


GPUS = {
    "a100": Gpu("A100 80GB", 312.0, 80.0),
    "h100": Gpu("H100 80GB SXM", 989.0, 79.6),
    "h200": Gpu("H200 141GB", 989.0, 140.4),
    "b200": Gpu("B200 180GB", 2250.0, 179.0),
    "l40s": Gpu("L40S 48GB", 362.0, 45.0),
    "rtx6000ada": Gpu("RTX 6000 Ada 48GB", 364.0, 48.0),
    "3090": Gpu("RTX 3090 24GB", 71.0, 24.0),
    "4090": Gpu("RTX 4090 24GB", 165.0, 24.0),
    "5090": Gpu("RTX 5090 32GB", 209.0, 31.8),
}
"""By the value of `planner.gpu`."""


def find_gpu(name: str | int) -> Gpu:
    """Return the GPU of that name; case, spaces and an `rtx` or `nvidia` before it do not count.

    Raises:
        ValueError: an unknown one, naming those that are known.
    """
    short = "".join(str(name).lower().split()).replace("nvidia", "")
    if short not in GPUS:
        short = short.replace("rtx", "")
    if short not in GPUS:
        raise ValueError(
            f"planner.gpu={name} is unknown; choose one of {', '.join(GPUS)}, or give planner.gpu_memory_gib and "
            "planner.peak_tflops with planner.gpu=null"
        )
    return GPUS[short]


def recognise(device: str) -> str | None:
    """Return the key of `GPUS` for CUDA's name of a device ("NVIDIA H100 80GB HBM3"), or None for one that is not in it."""
    short = "".join(device.lower().split())
    return next((name for name in GPUS if name in short), None)
