"""Measures the time saved by keeping the reference's keys and values over all sampling steps.

    python -m benchmarks.kept_reference                                       the miniature, 64 px, 16 steps, on the CPU
    python -m benchmarks.kept_reference --size 512 --steps 28 base=flux_dev   the real one, on its GPU

Draws the same batch from the same noise in four ways, alternately, on one transformer: with the reference's tokens appended
(`arch=reference_tokens`), in a pass of their own that is computed at every step, in one that is computed once and kept
(`arch.separate_pass=true`), and without any reference, which is what the others cannot get below. Times are medians; a
machine that does other work too makes them longer, and their ratios less so. Text embeddings and latents are random numbers:
neither the VAE nor a text encoder is run.
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from hydra import compose, initialize_config_dir
from torch import Tensor

from benchmarks.measure import refusing
from dsd_lightning.architectures.base import Architecture
from dsd_lightning.architectures.text_only import TextOnly
from dsd_lightning.models.build import build_architecture
from dsd_lightning.pairs import Condition, TextEmbeddings
from dsd_lightning.randomness import normal
from dsd_lightning.rectified_flow import NoShift
from dsd_lightning.runs.resolvers import register_resolvers
from dsd_lightning.sampler import SamplerSettings, sample

CONF = Path(__file__).parents[1] / "conf"

APPENDED, RECOMPUTED, KEPT, NONE = "appended", "own pass, recomputed", "own pass, kept", "no reference"


def ways(architecture: Architecture) -> dict[str, Architecture]:
    """Return the four ways to draw, on the one transformer of `architecture` (`separate_pass=true`)."""
    appended, recomputed = copy.copy(architecture), copy.copy(architecture)
    appended.separate_pass = False
    recomputed.prepare = lambda condition: {}  # type: ignore[method-assign]
    return {
        APPENDED: appended,
        RECOMPUTED: recomputed,
        KEPT: architecture,
        NONE: TextOnly(architecture.transformer),
    }


def condition_of(architecture: Architecture, batch: int, side: int, text_length: int) -> tuple[Condition, Tensor]:
    """Return a random condition, and noise for latents of `side` x `side`, on the architecture's device."""
    config, device = architecture.transformer.config, architecture.transformer.device
    channels = int(config.in_channels) // 4
    text = TextEmbeddings(
        normal((batch, text_length, int(config.joint_attention_dim)), "text").to(device),
        normal((batch, int(config.pooled_projection_dim)), "pooled").to(device),
    )
    reference = normal((batch, channels, side, side), "reference").to(device)
    condition = Condition(text, torch.full((batch,), 3.5, device=device), {"latents": reference})
    return condition, normal((batch, channels, side, side), "noise").to(device)


def seconds(work: Callable[[], Tensor]) -> tuple[float, Tensor]:
    """Return how long `work` took, its kernels included, and what it returned."""
    _synchronize()
    start = time.perf_counter()
    drawn = work()
    _synchronize()
    return time.perf_counter() - start, drawn


def _synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def measure(
    overrides: Sequence[str], steps: int, size: int, batch: int, repeats: int, device: str | None = None
) -> dict[str, Any]:
    """Return the seconds of each way, their ratios to the kept one, and how far kept and recomputed images are apart.

    Args:
        overrides: of `train.py`, for the base and the architecture.
        steps: Euler steps, without true guidance.
        size: side of the images, pixels.
        batch: images drawn at once.
        repeats: timed turns, after one that is not.
        device: None takes a GPU if there is one.
    """
    register_resolvers()
    with initialize_config_dir(config_dir=str(CONF), version_base="1.3"):
        config = compose("train", ["arch=reference_tokens", "arch.separate_pass=true", *overrides])
    architecture = build_architecture(config).to(device or ("cuda" if torch.cuda.is_available() else "cpu")).eval()
    with torch.no_grad():
        for name, parameter in architecture.trainable():
            parameter.copy_(0.02 * normal(parameter.shape, name))
    condition, noise = condition_of(
        architecture, batch, 2 * size // int(config.base.pixels_per_token), int(config.base.model.text_length)
    )
    settings = SamplerSettings(num_inference_steps=steps)
    times: dict[str, list[float]] = {}
    drawn: dict[str, Tensor] = {}
    for turn in range(repeats + 1):
        for name, each in ways(architecture).items():
            taken, drawn[name] = seconds(
                lambda each=each: sample(each, condition, condition.text, noise, settings, NoShift())
            )
            if turn:
                times.setdefault(name, []).append(taken)
    medians = {name: statistics.median(each) for name, each in times.items()}
    return {
        "device": torch.cuda.get_device_name() if noise.is_cuda else "cpu",
        "base": config.base.model.path,
        "steps": steps,
        "size": size,
        "batch": batch,
        "repeats": repeats,
        "seconds": medians,
        "ratio_to_kept": {name: median / medians[KEPT] for name, median in medians.items()},
        "largest_difference_of_kept_and_recomputed": float((drawn[KEPT] - drawn[RECOMPUTED]).abs().max()),
    }


@refusing
def main(arguments: list[str] | None = None) -> int:
    """Run the command; 0 is success, 2 a refusal."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.kept_reference", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("overrides", nargs="*", help="of train.py, such as base=flux_dev or arch.lora=null")
    parser.add_argument("--steps", type=int, default=16, help="Euler steps")
    parser.add_argument("--size", type=int, default=64, help="side of the images, pixels")
    parser.add_argument("--batch", type=int, default=4, help="images drawn at once")
    parser.add_argument("--repeats", type=int, default=5, help="timed turns")
    parser.add_argument("--json", type=Path, help="write the metrics there too")
    chosen = parser.parse_args(arguments)
    metrics = measure(chosen.overrides, chosen.steps, chosen.size, chosen.batch, chosen.repeats)
    print(f"{metrics['base']} on {metrics['device']}: {chosen.batch} x {chosen.size} px, {chosen.steps} steps")
    for name, value in metrics["seconds"].items():
        print(f"  {name:<22}{value:8.3f} s   {metrics['ratio_to_kept'][name]:5.2f} x kept")
    print(f"  largest difference of kept and recomputed: {metrics['largest_difference_of_kept_and_recomputed']:g}")
    if chosen.json is not None:
        chosen.json.write_text(json.dumps(metrics, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
