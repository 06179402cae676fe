"""Sizes that are appended to documented commands, so that each takes seconds.

Beside sizes, training runs on the CPU, uncompiled, without an account at W&B, and presets on a base that is not quantised.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

SOURCE = "data.datamodule.source"

SHORT = [
    *("trainer.max_steps=2", "trainer.val_check_interval=2", "trainer.accelerator=cpu", "logger=csv", "compile=false"),
    *("arch.lora.rank=2", "schedule.num_warmup_steps=1"),
]

TRAIN = [
    *(*SHORT, "data.datamodule.batch_size=2", f"{SOURCE}.validation_pairs=2", "sampler.num_inference_steps=2"),
    "callbacks.samples.count=2",
]

PRETRAINING = [*SHORT, f"{SOURCE}.singles=4", f"{SOURCE}.grids=8", f"{SOURCE}.validation_images=4"]
"""Of `data=pretraining`, whose source has other sizes."""

SIZES = {
    "train.py": TRAIN,
    "distill.py": ["count=5", "pairs=null"],
    "generate.py": ["--steps", "2", "--device", "cpu"],
    "datamodules.commands.write_shards": ["count=12"],
    "datamodules.commands.encode_shards": [],
    "dsd_lightning.offline.audit": ["--grids", "1"],
}
"""What is appended, by file or module."""

MINIATURE = [f"{SOURCE}.pairs=12", "callbacks.probe.samples=4"]

FLUX = ["base.model.path={base}", "base.model.text_length=24"]
"""A small model in the place of the gated one."""

SMALL_FLUX = ["base.pixels_per_token=8", "base.training.resolution=[64,64]"]

PRESET = [f"{SOURCE}.workers=1", "trainer.accumulate_grad_batches=1", "base.quantize=null"]


def sizes(arguments: Sequence[str], base: Path) -> list[str]:
    """Return what is appended to a command line of Python; `base` is a small FLUX.1-dev."""
    program = next((each for each in arguments if each in SIZES), None)
    if program is None or "--help" in arguments or "plan=true" in arguments:
        return []
    if "experiment=grid_lora" in arguments:
        return PRETRAINING
    preset = any(each.startswith("experiment=flux_") for each in arguments)
    model = [each.format(base=base) for each in FLUX]
    more: list[str] = []
    if preset or "base=flux_dev" in arguments:
        more += [*model, *SMALL_FLUX]
    if preset:
        more += PRESET
    elif program == "train.py" and not any(each.startswith(("data=", "data.root=")) for each in arguments):
        more += MINIATURE
    elif program == "train.py":
        more += ["callbacks.probe.samples=4"]
    return [*SIZES[program], *more]
