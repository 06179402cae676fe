"""Every YAML of `conf/` composes, alone and with others, and experiments get the settings that they state."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf, open_dict
from support.choices import ARCHITECTURES, BASES, GROUPS, OTHER_COMMANDS, SOURCES, TASKS, options, pairwise
from support.commands import CONF, SOURCE, compose_train

from dsd_lightning.runs.folder import flattened
from dsd_lightning.runs.resolvers import register_resolvers


def test_every_group_is_chosen_in_the_root_file() -> None:
    groups = {next(iter(each)) for each in OmegaConf.load(CONF / "train.yaml").defaults if isinstance(each, DictConfig)}
    assert {*GROUPS, "optional debug/data"} == groups


@pytest.mark.parametrize(("arch", "task", "source", "base"), pairwise(ARCHITECTURES, TASKS, SOURCES, BASES))
def test_every_pair_of_the_large_groups_composes(arch: str, task: str, source: str, base: str) -> None:
    # The miniature world has one size, which is not that of a large base.
    more = {"shards": ["data.root=FOLDER"], "miniature": [f"{SOURCE}.resolution=[64,64]"]}.get(source, [])
    config = compose_train(Path("run"), f"arch={arch}", f"task={task}", f"data={source}", f"base={base}", *more)
    with open_dict(config):
        del config.hydra  # it holds values that only a started run has
    OmegaConf.resolve(config)
    assert not OmegaConf.missing_keys(config)
    assert instantiate(config.data.datamodule).task.name == task


def test_a_large_base_on_the_miniature_world_is_refused_with_the_remedy() -> None:
    config = compose_train(Path("run"), "base=flux_dev")
    with pytest.raises(InstantiationException, match=r"resolution=\[512, 512\].*use data=shards"):
        instantiate(config.data.datamodule)


@pytest.mark.parametrize(
    "file", sorted(p.relative_to(CONF) for v in OTHER_COMMANDS for p in (CONF / v).glob("*.yaml")), ids=str
)
def test_every_configuration_of_another_command_composes(file: Path) -> None:
    register_resolvers()
    GlobalHydra.instance().clear()
    with initialize_config_dir(config_dir=str(CONF), version_base="1.3"):
        config = compose(str(file.with_suffix("")), ["hydra.runtime.output_dir=run"], return_hydra_config=True)
    assert set(config) - {"hydra"}


def test_every_commands_root_file_composes() -> None:
    needed = {
        "write_shards": ["out=FOLDER"],
        "write_depth": ["source=IMAGES", "out=FOLDER"],
        "encode_shards": ["root=FOLDER", "out=FOLDER"],
    }
    for file in CONF.glob("*.yaml"):
        config = compose_train(Path("run"), *needed.get(file.stem, ()), name=file.stem)
        with open_dict(config):
            del config.hydra
        assert not OmegaConf.missing_keys(config), file


@pytest.mark.parametrize("group", ["experiment", "debug"])
def test_the_run_command_is_the_first_line(group: str) -> None:
    for option in options(group):
        head = (CONF / group / f"{option}.yaml").read_text().splitlines()[:2]
        assert head[0] == "# @package _global_"
        assert re.match(rf"# python train\.py (-m )?(\S+=\S+ )*{group}={option}\b", head[1]), option


@pytest.mark.parametrize("experiment", options("experiment"))
def test_an_experiment_gets_the_settings_that_it_states(experiment: str) -> None:
    written = OmegaConf.to_container(OmegaConf.load(CONF / "experiment" / f"{experiment}.yaml"))
    assert isinstance(written, dict)
    written.pop("defaults", None)
    composed = flattened(OmegaConf.to_container(compose_train(Path("run"), f"experiment={experiment}", as_it_is=True)))  # type: ignore[arg-type]
    for name, value in flattened({str(key): each for key, each in written.items()}).items():
        assert composed[name] == value, name


def test_debug_makes_every_experiment_small() -> None:
    for experiment in options("experiment"):
        config = compose_train(Path("run"), f"experiment={experiment}", "debug=default")
        assert config.trainer.max_steps <= 10
        source = config.data.datamodule.source
        sizes = [value for name, value in source.items() if name in ("pairs", "singles", "grids")]
        assert sizes or source._target_.endswith(".Shards")  # a set of shards has the size that it has
        assert max(sizes, default=0) <= 64


def test_tiny_and_flux_dev_differ_in_values_alone() -> None:
    tiny_keys, flux_keys = (
        set(compose_train(Path("run"), f"base={base}").base.model) - {"transformer_config"}
        for base in ("tiny", "flux_dev")
    )
    assert tiny_keys == flux_keys
