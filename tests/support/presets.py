"""Shipped presets and experiments on the tiny base: nothing but sizes and devices changed."""

from __future__ import annotations

from pathlib import Path

from datamodules.commands.encode_shards import encode_shards
from datamodules.commands.write_shards import write_shards
from support.choices import FEW
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


def write_student_sets(base: Path, root: Path) -> Path:
    """Write what `experiment=students` reads, encoded, and return the folder of all sets: curated/train and held_out."""
    for name, split in (("curated/train", "training"), ("held_out", "probe")):
        images, encoded = root / "images" / split, root / "encoded" / name
        write_shards(compose_train(root, f"out={images}", "count=4", f"split={split}", name="write_shards"))
        choices = [f"base.model.path={base}", f"root={images}", f"out={encoded}", "workers=0", "device=cpu"]
        encode_shards(compose_train(root, *choices, name="encode_shards"))
    return root / "encoded"


def miniature_sizes(experiment: str, base: Path, sets: Path) -> list[str]:
    """Return overrides that make a run of an experiment of the miniature small, uncompiled, and change nothing else.

    Args:
        sets: of `write_student_sets`.
    """
    config = compose_train(Path("run"), f"experiment={experiment}", as_it_is=True)
    overrides = [
        f"callbacks.samples.{each}" for each in ("count=2", "every_n_steps=2") if config.callbacks.get("samples")
    ]
    if config.callbacks.get("probe"):
        overrides += ["callbacks.probe.samples=2"]
    if config.arch.lora is not None:
        overrides += ["arch.lora.rank=2"]
    if "weaker" in config.arch:
        overrides += [f"arch.weaker={base / 'transformer'}"]
    few = FEW[config.hydra.runtime.choices.data]
    own = {"students": [f"sets={sets}", *few, f"{SOURCE}.workers=1"]}
    return [
        *own.get(experiment, few),
        f"base.model.path={base}",
        "base.model.initialise=pretrained",
        "compile=false",  # the suite's shape checks cannot be compiled
        "data.datamodule.batch_size=2",
        "sampler.num_inference_steps=2",
        "trainer.accelerator=cpu",
        "trainer.val_check_interval=2",
        "trainer.log_every_n_steps=1",
        *overrides,
    ]
