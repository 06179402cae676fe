"""Shipped presets on the tiny base: the settings of FLUX.1-dev, and nothing but sizes and devices changed."""

from __future__ import annotations

from pathlib import Path

from datamodules.commands.encode_shards import encode_shards
from support.commands import SOURCE, compose_train
from support.data.shard_sets import write_set

ON_TINY = ["base.model.text_length=24", "base.pixels_per_token=8"]
FLUX_ON_TINY = ["base=flux_dev", *ON_TINY]
"""The settings of FLUX.1-dev, on the tiny base's tokens and captions."""


def write_encoded(base: Path, root: Path) -> Path:
    """Write shards with the encodings that the presets read, and return their folder."""
    write_set(root / "images", count=8, resolution=48, max_bytes=1e6)
    choices = [*FLUX_ON_TINY, f"base.model.path={base}", f"root={root / 'images'}", f"out={root / 'encoded'}"]
    encode_shards(compose_train(root, *choices, "resolution=[48,48]", "workers=0", "device=cpu", name="encode_shards"))
    return root / "encoded"


def sizes(base: Path, shards: Path, devices: int = 1, settings: str = "flux_dev") -> list[str]:
    """Return overrides that make a preset's run small, on CPU processes, uncompiled, and change nothing else.

    Args:
        settings: of the preset's base, in `conf/base`.
    """
    return [
        f"base={settings}",
        *ON_TINY,
        "compile=false",  # the suite's shape checks cannot be compiled
        f"base.model.path={base}",
        f"data.root={shards}",
        f"{SOURCE}.resolution=[48,48]",
        f"{SOURCE}.validation_pairs=1",
        f"{SOURCE}.workers=1",
        "arch.lora.rank=2",
        "data.datamodule.batch_size=2",
        "sampler.num_inference_steps=2",
        "trainer.accelerator=cpu",
        f"trainer.devices={devices}",
        "trainer.val_check_interval=2",
        "trainer.accumulate_grad_batches=1",
        "callbacks.samples.every_n_steps=1",
        "logger=csv",
    ]
