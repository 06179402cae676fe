"""Measures what batched guidance passes and merged LoRA factors gain. Ratios of one run; the turns alternate.

python -m benchmarks.guidance [--run RUN_DIR] [--sizes 64 128 256] [--steps 4] [--repeats 5] [--device cuda] [--compile]
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from statistics import median

import torch

from dsd_lightning.pipeline import TwoFramePipeline
from dsd_lightning.pipeline.two_frame import log

GUIDED = {"image_guidance": 1.3, "text_guidance": 2.0, "guidance_start": 0}
"""Three passes at every step."""


def seconds(draw: Callable[[], object], device: torch.device) -> float:
    """Return how long one call takes, to the end of its work on the device."""
    start = time.perf_counter()
    draw()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start


def alternate(turns: dict[str, Callable[[], object]], repeats: int, device: torch.device) -> dict[str, float]:
    """Return the median seconds of each turn, after one that does not count."""
    for draw in turns.values():
        draw()
    taken: dict[str, list[float]] = {name: [] for name in turns}
    for _ in range(repeats):
        for name, draw in turns.items():
            taken[name].append(seconds(draw, device))
    return {name: median(values) for name, values in taken.items()}


def main() -> None:
    """Run the comparison and print a table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.guidance", description=__doc__)
    parser.add_argument("--run", help="a run folder; the shipped miniature if left out")
    parser.add_argument("--sizes", type=int, nargs="+", default=[64, 128, 256], help="sides of a frame, pixels")
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--device")
    parser.add_argument("--compile", action="store_true", help="compile the merged model")
    chosen = parser.parse_args()
    log.setLevel("ERROR")  # sizes far beyond those of training are meant here

    def pipeline(merge_lora: bool) -> TwoFramePipeline:
        options = {"merge_lora": merge_lora, "device": chosen.device, "compile": chosen.compile and merge_lora}
        model = TwoFramePipeline.from_run(chosen.run, **options) if chosen.run else TwoFramePipeline.tiny(**options)
        model.set_progress_bar_config(disable=True)
        return model

    merged, unmerged = pipeline(True), pipeline(False)
    device = merged._execution_device
    print(
        f"{device}, {torch.get_num_threads()} threads, {chosen.steps} steps of three passes; medians of {chosen.repeats}"
    )
    print(
        "side | tokens | merged, batched s | sequential / batched | unmerged / merged (sequential) | unmerged sequential / best"
    )
    for side in chosen.sizes:
        reference = torch.zeros(3, side, side)

        def draw(
            model: TwoFramePipeline, batched: bool, reference: torch.Tensor = reference, side: int = side
        ) -> object:
            return model(
                reference,
                "this character",
                height=side,
                width=side,
                num_inference_steps=chosen.steps,
                output_type="latent",
                batch_passes=batched,
                generator=torch.Generator().manual_seed(0),
                **GUIDED,
            )

        taken = alternate(
            {
                "batched": lambda draw=draw: draw(merged, True),  # type: ignore[misc]
                "sequential": lambda draw=draw: draw(merged, False),  # type: ignore[misc]
                "unmerged": lambda draw=draw: draw(unmerged, False),  # type: ignore[misc]
            },
            chosen.repeats,
            device,
        )
        tokens = merged.draw_latents(1, side, side).shape[1] + merged.config.text_length
        best = min(taken["batched"], taken["sequential"])
        print(
            f"{side:4d} | {tokens:6d} | {taken['batched']:17.3f} | {taken['sequential'] / taken['batched']:20.2f} | "
            f"{taken['unmerged'] / taken['sequential']:30.2f} | {taken['unmerged'] / best:26.2f}"
        )


if __name__ == "__main__":
    main()
