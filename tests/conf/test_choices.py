"""Every choice of every group of `train.py` trains a step, and every architecture, task and source do so together."""

from __future__ import annotations

import json
from itertools import zip_longest
from pathlib import Path

import pytest
import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf
from skimage import data as photographs
from support.choices import (
    ARCHITECTURES,
    FEW,
    GROUPS,
    IN_THE_MINIATURE,
    SOURCES,
    TASKS,
    every_combination,
    options,
    small,
)
from support.commands import CONF, SOURCE, compose_train, tiny

from dsd_lightning.cli.errors import message_for_user
from dsd_lightning.shards import ShardWriter
from dsd_lightning.training.run import train

TOGETHER = ("density", "schedule", "shift", "optimizer")
"""Groups that do not depend on each other: the first options of all are tried in one run, then the second ones, ..."""

ELSEWHERE = {"arch", "data", "task", "experiment", "memory"}
"""Groups whose options are tried in combinations, below, or under their own precision, in test_true_conditions.py."""


def runs() -> list[list[str]]:
    """Return the choices to try, a list a run."""
    one_by_one = [
        [f"{group}={option}"]
        for group in GROUPS
        if group not in {*TOGETHER, *ELSEWHERE}
        for option in options(group)
        if not (group == "base" and option.startswith("flux_"))  # no weights here; test_flux_dev.py, test_flux_bases.py
    ]
    columns = [[f"{group}={each}" for each in options(group) if not each.endswith("_8bit")] for group in TOGETHER]
    together = [[choice for choice in row if choice] for row in zip_longest(*columns)]
    return [*one_by_one, *together, ["optimizer=adamw_8bit"]]


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Return a small folder of pair shards for every task."""
    from PIL import Image

    root = tmp_path_factory.mktemp("shards")
    for task in TASKS:
        with ShardWriter(root / task, task=task, resolution=None) as writer:
            for index, name in enumerate(("astronaut", "cat", "coffee", "rocket")):
                image = Image.fromarray(getattr(photographs, name)()).resize((96, 80))
                writer.write(f"photograph-{index}", image, image.rotate(90), f"a photograph of {name}")
    return {task: root / task for task in TASKS}


@pytest.mark.parametrize("choices", runs(), ids=" ".join)
def test_every_choice_trains_a_step(
    choices: list[str], tiny_base: Path, shards: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    group, option = choices[0].split("=")
    if option == "trackio":
        monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
        pytest.importorskip("trackio")
    if option.endswith("_8bit"):
        pytest.importorskip("torchao")
    if group != "debug":
        choices = [*choices, *([] if group == "logger" else ["logger=csv"])]
        choices = [*choices, *([] if group == "callbacks" else ["callbacks=minimal"])]
    metrics = train(small(tmp_path, tiny_base, shards, *choices), tmp_path)
    assert (tmp_path / "summary.json").is_file()
    assert (tmp_path / "checkpoints" / "step_00000001").is_dir()
    assert all(torch.isfinite(torch.tensor(value)) for value in metrics.values())


@pytest.mark.parametrize(("arch", "task", "source"), every_combination(ARCHITECTURES, TASKS, SOURCES))
def test_every_arch_on_every_task_from_every_source_trains_or_is_refused(
    arch: str, task: str, source: str, tiny_base: Path, shards: dict[str, Path], tmp_path: Path
) -> None:
    choices = (f"arch={arch}", f"task={task}", f"data={source}", "callbacks=minimal", "logger=csv")
    config = small(tmp_path, tiny_base, shards, *choices)
    refusal = None
    try:
        train(config, tmp_path)
    except Exception as error:
        refusal = message_for_user(error)
        if refusal is None:
            raise
    # Pairs of images are never refused, nor is the miniature where the task has pairs in it.
    if source == "shards" or (task in IN_THE_MINIATURE and source == "miniature"):
        assert refusal is None
    if (arch, task, source) == ("text_only", "text_to_image", "pretraining"):
        assert refusal is None
    assert (tmp_path / "summary.json").is_file() == (refusal is None)


@pytest.mark.parametrize("task", IN_THE_MINIATURE)
def test_a_run_reports_the_metrics_that_its_task_names(task: str, tiny_base: Path, tmp_path: Path) -> None:
    overrides = [f"task={task}", "logger=csv", "callbacks.samples=null", "callbacks.probe.samples=2"]
    config = compose_train(tmp_path, *tiny(tiny_base, *FEW["miniature"], *overrides, "trainer.max_steps=1"))
    names = list(OmegaConf.load(CONF / "task" / f"{task}.yaml").metrics)
    train(config, tmp_path)
    summary = json.loads((tmp_path / "summary.json").read_text())
    for name in names:
        assert {name, f"{name}_before", f"{name}_ceiling"} <= summary.keys()
    documented = (CONF.parent / "docs" / "metrics.md").read_text()
    assert all(f"`probe/{name}`" in documented for name in names)


@pytest.mark.parametrize("task", ["identity", "relighting"])
def test_captions_and_instructions_are_mixed_by_the_given_odds(task: str, tiny_base: Path, tmp_path: Path) -> None:
    odds = ["task.relation.captions.caption=0.5", "task.relation.captions.instruction=0.5"]
    few = [f"task={task}", f"{SOURCE}.pairs=60", f"{SOURCE}.validation_pairs=2", f"{SOURCE}.pool=false"]
    data = instantiate(compose_train(tmp_path, *tiny(tiny_base, *few, *odds)).data.datamodule)
    dataset = data.source.training(data)
    kinds = {}
    for epoch in range(2):
        for index in range(60):
            pair, prompt = dataset.pairs[index], dataset[epoch, index].prompt
            assert prompt in (pair.caption, pair.instruction)
            kinds[epoch, index] = prompt == pair.instruction
    assert 0.35 < sum(kinds.values()) / len(kinds) < 0.65
    # A sample does not keep one kind for ever.
    assert any(kinds[0, index] != kinds[1, index] for index in range(60))
    probed = [prompt for batch in data.probe_batches(40, 20) for prompt in batch.prompts]
    captions = [data.source.probes(data, 40)[index].caption for index in range(40)]
    assert 5 < sum(one != other for one, other in zip(probed, captions, strict=True)) < 35
