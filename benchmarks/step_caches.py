"""Measures what each step cache gives in time and costs in quality, on the shipped miniature.

    python -m benchmarks.step_caches                                        256 held-out characters, 16 steps
    python -m benchmarks.step_caches --pairs 32 --settings none first_block:0.2 steps:8

Generates the same pairs from the same noise under every setting, image by image, the settings alternating, each pair in another
order. A setting is a cache as `--step_cache` names it, or `steps:N`: no cache and N steps, which is the plain way to the same
time. Printed are the share of the transformer's operations (over the first pairs), seconds an image over those without a
cache (median of the pairs' ratios, with a 95% interval), the task's metrics, and how far the images are from those without a
cache. The miniature is one small model, here with 16 steps: on FLUX.1-dev and 28 steps, shares and losses are other ones.
"""

from __future__ import annotations

import argparse
import random
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode
from tqdm import tqdm

from benchmarks.measure import facts, ratio, refusing, wait, write
from dsd_lightning.flux.step_cache import StepCache
from dsd_lightning.miniature.metrics.base import SampleMetric
from dsd_lightning.pairs import REFERENCE, TARGET, PairBatch
from dsd_lightning.pipeline import TwoFramePipeline
from dsd_lightning.randomness import torch_generator
from dsd_lightning.runs.resolvers import register_resolvers

CONF = Path(__file__).parents[1] / "conf"
PLAIN = "none"
SETTINGS = (
    PLAIN,
    *("steps:12", "steps:8"),
    *("first_block:0.05", "first_block:0.1", "first_block:0.2"),
    *("taylor_seer:2", "taylor_seer:3", "taylor_seer_lite:2", "taylor_seer_lite:3", "taylor_seer_lite:5"),
)
COUNTED = 4
"""Pairs whose operations are counted."""


@dataclass(frozen=True)
class Setting:
    """A cache or None, and the number of Euler steps."""

    cache: StepCache | None
    steps: int

    @classmethod
    def parse(cls, text: str, steps: int) -> Setting:
        """Return what a name such as `none`, `steps:8` or `first_block:0.1` stands for."""
        kind, _, value = text.partition(":")
        if kind == "steps" and value.isdecimal() and int(value) > 0:
            return cls(None, int(value))
        return cls(None if text == PLAIN else StepCache.parse(text), steps)


def read_pairs(count: int) -> tuple[list[PairBatch], dict[str, SampleMetric]]:
    """Return held-out pairs of the miniature one by one, those of training's probes, and the task's metrics."""
    register_resolvers()
    with initialize_config_dir(config_dir=str(CONF), version_base="1.3"):
        config = compose("train", ["arch=parallel", "task=identity", "base=tiny"])
    data = instantiate(config.data.datamodule)
    return list(data.probe_batches(count, 1)), instantiate(config.task.metrics)


class Bench:
    """The miniature, and what its images are held against.

    Args:
        steps: Euler steps. guidance: by image and by text. device: None takes a GPU if there is one.
    """

    def __init__(self, steps: int, guidance: float, device: str | None) -> None:
        self.pipeline = TwoFramePipeline.tiny(device=device)
        self.pipeline.set_progress_bar_config(disable=True)
        self.steps, self.guidance = steps, guidance
        self.device = self.pipeline._execution_device

    def generate(self, pair: PairBatch, setting: Setting) -> tuple[dict[str, Tensor], float]:
        """Return the generated frames [1, 3, h, w] in [-1, 1] by name, and the seconds that they took."""
        assert pair.reference is not None
        self.pipeline.transformer.use_step_cache(setting.cache)
        wait(self.device)
        start = perf_counter()
        output: Any = self.pipeline(
            pair.reference[0],
            pair.prompts[0],
            num_inference_steps=setting.steps,
            image_guidance=self.guidance,
            text_guidance=self.guidance,
            generator=torch_generator("step caches", pair.keys[0]),
            output_type="np",
            return_reference=True,
        )
        wait(self.device)
        seconds = perf_counter() - start
        frames = {TARGET: output.images, REFERENCE: output.references}
        return {name: 2 * torch.from_numpy(each).permute(0, 3, 1, 2) - 1 for name, each in frames.items()}, seconds

    def turns(
        self, pairs: Sequence[PairBatch], settings: Mapping[str, Setting]
    ) -> Iterator[tuple[PairBatch, dict[str, tuple[dict[str, Tensor], float, int]]]]:
        """Yield each pair with frames, seconds, and operations (0 where they are not counted) by setting."""
        order = random.Random(0)
        for setting in settings.values():  # not timed
            self.generate(pairs[0], setting)
        for index, pair in enumerate(tqdm(pairs, unit="pair", disable=None)):
            names, taken = list(settings), {}
            order.shuffle(names)
            for name in names:
                frames, seconds = self.generate(pair, settings[name])
                taken[name] = frames, seconds, self.operations(pair, settings[name]) if index < COUNTED else 0
            yield pair, taken

    def operations(self, pair: PairBatch, setting: Setting) -> int:
        """Return the floating-point operations of all predictions of an image."""
        with FlopCounterMode(display=False) as counter:
            self.generate(pair, setting)
        return sum(counter.get_flop_counts()[type(self.pipeline.transformer).__name__].values())


def measure(names: Sequence[str], pairs: int, steps: int, guidance: float, device: str | None) -> dict[str, Any]:
    """Return the metrics of each setting; the first one is what the others are held against."""
    settings = {name: Setting.parse(name, steps) for name in names}
    batches, metrics = read_pairs(pairs)
    bench = Bench(steps, guidance, device)
    scores = {name: {key: metric.clone() for key, metric in metrics.items()} for name in names}
    seconds: dict[str, list[float]] = {name: [] for name in names}
    operations, errors = dict.fromkeys(names, 0), dict.fromkeys(names, 0.0)
    for pair, taken in bench.turns(batches, settings):
        for name, (frames, each, counted) in taken.items():
            seconds[name].append(each)
            operations[name] += counted
            errors[name] += float((frames[TARGET] - taken[names[0]][0][TARGET]).square().mean()) / len(batches)
            for metric in scores[name].values():
                metric.score(frames, pair)
    return {
        **facts(bench.device),
        "pairs": len(batches),
        "steps": steps,
        "guidance": guidance,
        "settings": {
            name: {
                "operations": operations[name] / operations[names[0]],
                "seconds": ratio(seconds[name], seconds[names[0]]),
                "rms_difference": errors[name] ** 0.5,
                **{key: float(metric.compute()) for key, metric in scores[name].items()},
            }
            for name in names
        },
    }


def table(metrics: Mapping[str, Any]) -> str:
    """Return the metrics as a Markdown table."""
    lines = [
        f"| `--step_cache` | operations | seconds an image | identity_accuracy | prompt_accuracy | {COLUMN} |",
        "|---|---|---|---|---|---|",
    ]
    for name, each in metrics["settings"].items():
        time = each["seconds"]
        lines.append(
            f"| {_label(name)} | {each['operations']:.2f} | {time['ratio']:.2f} [{time['low']:.2f}, {time['high']:.2f}] | "
            f"{each['identity_accuracy']:.3f} | {each['prompt_accuracy']:.3f} | {each['rms_difference']:.3f} |"
        )
    return "\n".join(lines)


COLUMN = "RMS difference to no cache, pixels in [-1, 1]"


def _label(name: str) -> str:
    if name == PLAIN:
        return "no cache"
    return f"no cache, {name.partition(':')[2]} steps" if name.startswith("steps:") else f"`{name}`"


@refusing
def main(arguments: list[str] | None = None) -> int:
    """Run the command; 0 is success, 2 a refusal."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.step_caches", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument(
        "--settings", nargs="+", default=list(SETTINGS), help="the first is what others are held against"
    )
    parser.add_argument("--pairs", type=int, default=256, help="held-out characters")
    parser.add_argument("--steps", type=int, default=16, help="Euler steps")
    parser.add_argument("--guidance", type=float, default=1.5, help="true guidance, by image and by text")
    parser.add_argument("--device", help="the GPU if there is one")
    parser.add_argument("--out", type=Path, help="write the metrics there too")
    chosen = parser.parse_args(arguments)
    metrics = measure(chosen.settings, chosen.pairs, chosen.steps, chosen.guidance, chosen.device)
    write(chosen.out, metrics)
    print(table(metrics))
    return 0


if __name__ == "__main__":
    sys.exit(main())
