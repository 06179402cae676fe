"""Expects how many records each stage keeps: from shares in the configuration, or from an earlier run's report."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, replace
from pathlib import Path

from hydra.utils import instantiate
from omegaconf import DictConfig

from dsd_lightning.distillation.records import DistillationError
from dsd_lightning.files.text import read_text
from dsd_lightning.planning.gpus import GPUS

PANELS, PAIRS = 4, 6
"""Panels of a grid, and their unordered pairs."""

SHOWN = ("h100", "a100", "l40s", "4090")
"""GPUs whose hours a dry run prints."""

DIRECTIONS = 2
"""Training pairs of a pair of panels: each panel is once the reference."""


@dataclass(frozen=True)
class Yields:
    """Shares of its records that each stage keeps, in (0, 1], and the teacher's time.

    Attributes:
        filter: of the captions.
        prompts: of the filtered captions.
        split: of the grids.
        verify: of the pairs of panels, six a grid.
        caption: of the accepted pairs.
        seconds_per_grid: of one grid on one device, seconds.
        gpu: a key of `planning.gpus.GPUS`, whose seconds these are; None: those of the device at hand.
        run: folder of an earlier run whose report replaces all of these; None: none does.
    """

    filter: float | int
    prompts: float | int
    split: float | int
    verify: float | int
    caption: float | int
    seconds_per_grid: float | int
    gpu: str | None = None
    run: str | None = None

    def measured(self) -> Yields:
        """Return the yields of the earlier run, or these if there is none.

        Raises:
            DistillationError: a share out of range, an unknown GPU, or a run without a report or whose stage kept nothing.
        """
        if self.gpu is not None and self.gpu not in GPUS:
            raise DistillationError(f"expected.gpu={self.gpu}: choose one of {', '.join(GPUS)}, or null")
        if self.run is None:
            shares = {name: getattr(self, name) for name in ("filter", "prompts", "split", "verify", "caption")}
            for name, share in shares.items():
                if not 0 < share <= 1:
                    raise DistillationError(f"expected.{name}={share}: a share of records, above 0 and at most 1")
            return self
        report = Path(self.run) / "report.json"
        if not report.is_file():
            raise DistillationError(f"expected.run={self.run}: {report} is missing; name the folder of a finished run")
        lines = {line["stage"]: line for line in json.loads(read_text(report))["run"]["lines"]}
        shares = {}
        for name in ("filter", "prompts", "split", "verify", "caption"):
            taken = lines[name]["taken"] * (PAIRS if name == "verify" else 1) if name in lines else 0
            if not taken or not lines[name]["kept"]:
                raise DistillationError(f"expected.run={self.run}: its stage {name} kept nothing")
            shares[name] = lines[name]["kept"] / taken
        seconds = lines["grids"]["seconds"] / lines["grids"]["kept"]
        return replace(self, seconds_per_grid=seconds, gpu=None, run=None, **shares)

    def grids(self, captions: float | int, seeds_per_prompt: int) -> float:
        """Return the grids to expect of so many captions."""
        return captions * self.filter * self.prompts * seeds_per_prompt

    def gpu_hours(self, grids: float | int) -> dict[str, float]:
        """Return the hours that one device takes for so many grids, by its name.

        Those of other GPUs are scaled by their peak throughput, and only named where the seconds are of a known GPU.
        """
        hours = grids * self.seconds_per_grid / 3600
        if self.gpu is None:
            return {"device": hours}
        peak = GPUS[self.gpu].peak_tflops
        return {GPUS[name].title: hours * peak / GPUS[name].peak_tflops for name in dict.fromkeys((self.gpu, *SHOWN))}

    def pairs(self, captions: float | int, seeds_per_prompt: int) -> float:
        """Return the training pairs to expect of so many captions."""
        judged = self.grids(captions, seeds_per_prompt) * self.split * PAIRS
        return judged * self.verify * self.caption * DIRECTIONS

    def captions(self, pairs: int, seeds_per_prompt: int) -> int:
        """Return the captions that are expected to give so many training pairs."""
        return math.ceil(pairs / self.pairs(1.0, seeds_per_prompt))


def captions_wanted(config: DictConfig) -> int:
    """Return the captions to draw: `count`, or as many as `pairs` are expected to need.

    Raises:
        DistillationError: `pairs` below 1, or yields that make no sense.
    """
    if config.pairs is None:
        return int(config.count)
    if not isinstance(config.pairs, int) or config.pairs < 1:
        raise DistillationError(f"pairs={config.pairs} must be a whole number of at least 1, or null to go by count")
    yields: Yields = instantiate(config.expected)
    return yields.measured().captions(config.pairs, config.stages.grids.seeds_per_prompt)
