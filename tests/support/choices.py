"""What can be chosen in `conf/`, and small runs of any choice."""

from __future__ import annotations

from itertools import combinations, product
from pathlib import Path

import pytest
from omegaconf import DictConfig

from support.commands import CONF, SOURCE, compose_train

OTHER_COMMANDS = (
    "agents",
    "benchmark",
    "captions",
    "detector",
    "evaluate",
    "executor",
    "judge",
    "method",
    "pretraining",
    "protocol",
)
"""Folders whose files are configurations of their own, not groups of `train.py`."""


def options(group: str) -> list[str]:
    """Return what the user can choose for a group."""
    return sorted(file.stem for file in (CONF / group).glob("*.yaml"))


GROUPS = sorted(
    folder.name for folder in CONF.iterdir() if folder.is_dir() and folder.name not in (*OTHER_COMMANDS, "hydra")
)
ARCHITECTURES, TASKS, SOURCES, BASES = (options(group) for group in ("arch", "task", "data", "base"))

IN_THE_MINIATURE = ("identity", "depth", "relighting")
"""Tasks that the embedded world has pairs of."""

FEW = {
    "miniature": [f"{SOURCE}.pairs=4", f"{SOURCE}.validation_pairs=2"],
    "pretraining": [
        f"{SOURCE}.singles=4",
        f"{SOURCE}.two_panels=4",
        f"{SOURCE}.grids=4",
        f"{SOURCE}.validation_images=1",
    ],
    "shards": [f"{SOURCE}.workers=0", f"{SOURCE}.validation_pairs=2"],
}
"""Overrides that make a source small; one that is not named is small by itself."""


def pairwise(*axes: list[str]) -> list[tuple[str, ...]]:
    """Return a few combinations that hold every pair of options of two axes; each has the most pairs that are new."""
    pairs = {values: set(combinations(enumerate(values), 2)) for values in product(*axes)}
    missing, chosen = set().union(*pairs.values()), []
    while missing:
        chosen.append(max(pairs, key=lambda values: len(pairs[values] & missing)))
        missing -= pairs[chosen[-1]]
    return chosen


def every_combination(*axes: list[str]) -> list[object]:
    """Return all combinations as parameters; those that are not of `pairwise` are `long`."""
    needed = pairwise(*axes)
    return [pytest.param(*values, marks=[] if values in needed else pytest.mark.long) for values in product(*axes)]


def small(run_dir: Path, base: Path, shards: dict[str, Path], *choices: str) -> DictConfig:
    """Return the configuration of one training step of `choices`, on little data and on `base`.

    Args:
        run_dir: the run's folder.
        base: a model folder.
        shards: folders of pair shards by task.
        choices: overrides.
    """
    root = ["data.root=unused"] if "data=shards" in choices else []
    one_step = [f"trainer.{name}=1" for name in ("max_steps", "val_check_interval", "log_every_n_steps")]
    config = compose_train(
        run_dir, *root, *choices, f"base.model.path={base}", "sampler.num_inference_steps=1", *one_step
    )
    chosen = config.hydra.runtime.choices
    overrides = [*FEW.get(chosen.data, ()), "data.datamodule.batch_size=2", "trainer.accelerator=cpu"]
    if chosen.data == "shards":
        overrides.append(f"data.root={shards[chosen.task]}")
    if config.arch.get("lora") is not None:
        overrides.append("arch.lora.rank=2")
    few = {"probe": ["samples=2"], "samples": ["count=2", "every_n_steps=1"], "judge": ["subjects=1", "measures=[cp]"]}
    for name, settings in few.items():
        if config.callbacks.get(name) is not None:
            overrides += [f"callbacks.{name}.{setting}" for setting in settings]
    # As the command line's would: values replace values, and no key is new. A second composition costs as much as a step.
    config.merge_with_dotlist(overrides)
    return config
