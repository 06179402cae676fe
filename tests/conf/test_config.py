"""Does every YAML compose and build something that trains, and is a wrong value refused at the start, by name?"""

from __future__ import annotations

import itertools
import json
import re
from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf, open_dict
from skimage import data as photographs
from support.commands import CONF, SOURCE, compose_train, tiny

from dsd_lightning.cli.errors import message_for_user
from dsd_lightning.models.build import build_architecture
from dsd_lightning.runs.folder import flattened
from dsd_lightning.runs.resolvers import register_resolvers
from dsd_lightning.shards import ShardWriter
from dsd_lightning.training.build import build_module
from dsd_lightning.training.run import train

FLUX_PARAMETERS = 11_901_408_320
LORA_512_PARAMETERS = 2_091_909_120

OTHER_COMMANDS = ("agents", "benchmark", "captions", "evaluate", "executor", "judge", "method", "pretraining")
"""Folders whose files are configurations of their own, not groups of `train.py`."""


def options(group: str) -> list[str]:
    """Return what the user can choose for a group."""
    return sorted(file.stem for file in (CONF / group).glob("*.yaml"))


GROUPS = sorted(folder.name for folder in CONF.iterdir() if folder.is_dir() and folder.name not in OTHER_COMMANDS)
EVERY_CHOICE = [(group, option) for group in GROUPS for option in options(group)]
ARCHITECTURES, TASKS, SOURCES, BASES = (options(group) for group in ("arch", "task", "data", "base"))

IN_THE_MINIATURE = ("identity", "depth", "relighting")
"""Tasks that the embedded world has pairs of."""

FEW = {
    "miniature": [f"{SOURCE}.pairs=4", f"{SOURCE}.validation_pairs=2"],
    "pretraining": [f"{SOURCE}.singles=4", f"{SOURCE}.grids=4", f"{SOURCE}.validation_images=1"],
    "shards": [f"{SOURCE}.workers=0", f"{SOURCE}.validation_pairs=2"],
}
"""Overrides that make a source small; one that is not named is small by itself."""


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


def small(run_dir: Path, tiny_base: Path, shards: dict[str, Path], *choices: str) -> DictConfig:
    """Return the configuration of one training step of `choices`, on little data and, where it is not flux_dev, tiny_base."""
    first = (
        compose_train(run_dir, "data.root=unused", *choices)
        if "data=shards" in choices
        else compose_train(run_dir, *choices)
    )
    chosen = first.hydra.runtime.choices
    overrides = [*FEW.get(chosen.data, ()), "data.datamodule.batch_size=2", "trainer.accelerator=cpu"]
    if chosen.data == "shards":
        overrides.append(f"data.root={shards[chosen.task]}")
    if first.arch.get("lora") is not None:
        overrides.append("arch.lora.rank=2")
    for name, few in {
        "probe": ["samples=2"],
        "samples": ["count=2", "every_n_steps=1"],
        "judge": ["subjects=1"],
    }.items():
        if first.callbacks.get(name) is not None:
            overrides += [f"callbacks.{name}.{each}" for each in few]
    return compose_train(
        run_dir,
        *choices,
        f"base.model.path={tiny_base}",
        "sampler.num_inference_steps=1",
        "trainer.max_steps=1",
        "trainer.val_check_interval=1",
        "trainer.log_every_n_steps=1",
        *overrides,
    )


# --- Every file.


def test_every_group_is_chosen_in_the_root_file() -> None:
    groups = {next(iter(each)) for each in OmegaConf.load(CONF / "train.yaml").defaults if isinstance(each, DictConfig)}
    assert {*GROUPS, "optional debug/data"} == groups


@pytest.mark.parametrize(("group", "option"), EVERY_CHOICE)
def test_every_choice_trains_a_step(
    group: str, option: str, tiny_base: Path, shards: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    choices = [f"{group}={option}"]
    if (group, option) == ("base", "flux_dev"):
        pytest.skip("its weights are not downloaded; see the tests on meta")
    if group == "data":
        # A source may need an architecture without reference.
        if option == "pretraining":
            choices += ["arch=text_only", "task=text_to_image"]
    elif (group, option) == ("task", "text_to_image"):
        choices += ["arch=text_only", "data=pretraining"]
    elif (group, option) == ("experiment", "dsd_paper"):
        # As it is, but on one CPU and on small images.
        choices += ["trainer/strategy=single", "trainer.devices=1", f"{SOURCE}.resolution=[64,64]"]
    elif (group, option) == ("experiment", "students"):
        choices += [f"{SOURCE}.encoded=false", f"{SOURCE}.validation_root=null"]  # the test's shards are images
    elif group == "memory":
        choices += ["trainer/strategy=single", "trainer.devices=1", "trainer.accumulate_grad_batches=1"]
        if option == "24gb":
            pytest.importorskip("bitsandbytes")
    elif option.endswith("_8bit"):
        pytest.importorskip("torchao")
    if not (group == "logger" and option != "csv") and group not in ("experiment", "debug"):
        choices.append("logger=csv")
    if group not in ("callbacks", "experiment", "debug"):
        choices.append("callbacks=minimal")
    config = small(tmp_path, tiny_base, shards, *choices)
    metrics = train(config, tmp_path)
    assert (tmp_path / "summary.json").is_file()
    assert (tmp_path / "checkpoints" / "step_00000001").is_dir()
    assert all(torch.isfinite(torch.tensor(value)) for value in metrics.values())


@pytest.mark.parametrize(("arch", "task", "source"), list(itertools.product(ARCHITECTURES, TASKS, SOURCES)))
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
    assert (tmp_path / "summary.json").is_file() == (refusal is None)


@pytest.mark.parametrize(
    ("arch", "task", "source", "base"), list(itertools.product(ARCHITECTURES, TASKS, SOURCES, BASES))
)
def test_every_combination_of_the_large_groups_composes(arch: str, task: str, source: str, base: str) -> None:
    root = ["data.root=FOLDER"] if source == "shards" else []
    config = compose_train(Path("run"), f"arch={arch}", f"task={task}", f"data={source}", f"base={base}", *root)
    with open_dict(config):
        del config.hydra  # it holds what only a run knows
    OmegaConf.resolve(config)
    assert not OmegaConf.missing_keys(config)
    assert instantiate(config.data.datamodule).task.name == task


@pytest.mark.parametrize(
    "file", sorted(p.relative_to(CONF) for v in OTHER_COMMANDS for p in (CONF / v).glob("*.yaml")), ids=str
)
def test_every_configuration_of_another_command_composes(file: Path) -> None:
    register_resolvers()
    GlobalHydra.instance().clear()
    with initialize_config_dir(config_dir=str(CONF), version_base="1.3"):
        config = compose(str(file.with_suffix("")), ["hydra.runtime.output_dir=run"], return_hydra_config=True)
    assert set(config) - {"hydra"}


def test_the_offline_judge_over_http_gets_its_server() -> None:
    config = compose_train(Path("run"), "judge=server", name="evaluate")
    assert config.serve == "dsd_lightning.offline.score_judge.judge:answer"
    assert config.judge.provider.model == "miniature-judge-1"
    assert compose_train(Path("run"), name="evaluate").serve is None


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
def test_the_run_command_stands_on_top(group: str) -> None:
    for option in options(group):
        head = (CONF / group / f"{option}.yaml").read_text().splitlines()[:2]
        assert head[0] == "# @package _global_"
        assert re.match(rf"# python train\.py (-m )?(\S+=\S+ )*{group}={option}\b", head[1]), option


@pytest.mark.parametrize("experiment", options("experiment"))
def test_what_an_experiment_says_is_what_it_gets(experiment: str) -> None:
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
        sizes = [
            value for name, value in config.data.datamodule.source.items() if name in ("pairs", "singles", "grids")
        ]
        assert sizes or config.data.datamodule.source._target_.endswith(".Shards")  # they are as many as they are
        assert max(sizes, default=0) <= 64


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
    overrides = [
        f"task={task}",
        "callbacks=minimal",
        "logger=csv",
        f"{SOURCE}.pairs=60",
        f"{SOURCE}.validation_pairs=2",
    ]
    odds = ["task.relation.captions.caption=0.5", "task.relation.captions.instruction=0.5"]
    config = compose_train(tmp_path, *tiny(tiny_base, *overrides, *odds, "trainer.max_steps=1"))
    train(config, tmp_path)
    data = instantiate(config.data.datamodule)
    data.source.pool = False
    dataset = data.source.training(data)
    kinds = {}
    for epoch in range(2):
        for index in range(60):
            pair, prompt = dataset.pairs[index], dataset[epoch, index].prompt
            assert prompt in (pair.caption, pair.instruction)
            kinds[epoch, index] = prompt == pair.instruction
    assert 0.35 < sum(kinds.values()) / len(kinds) < 0.65
    # A sample is not tied to one kind for good.
    assert any(kinds[0, index] != kinds[1, index] for index in range(60))
    probed = [prompt for batch in data.probe_batches(40, 20) for prompt in batch.prompts]
    captions = [data.source.probes(data, 40)[index].caption for index in range(40)]
    assert 5 < sum(one != other for one, other in zip(probed, captions, strict=True)) < 35


# --- FLUX.1-dev, on meta.


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_flux_dev_is_built_on_meta(arch: str) -> None:
    factors_by_itself = OmegaConf.load(CONF / "arch" / f"{arch}.yaml").lora is not None
    choices = ["base=flux_dev", "base.model.initialise=meta", f"arch={arch}", "arch.lora.rank=512"]
    choices += [] if factors_by_itself else ["+arch/lora=all_linear"]
    architecture = build_architecture(compose_train(Path("run"), *choices))
    assert all(parameter.device.type == "meta" for parameter in architecture.parameters())
    frozen = sum(p.numel() for p in architecture.transformer.parameters() if not p.requires_grad)
    factors = sum(p.numel() for name, p in architecture.trainable() if ".lora_" in name)
    assert frozen == FLUX_PARAMETERS
    assert factors == LORA_512_PARAMETERS
    assert {p.dtype for _, p in architecture.trainable()} == {torch.float32}
    assert {p.dtype for p in architecture.transformer.parameters() if not p.requires_grad} == {torch.bfloat16}


def test_the_papers_run_is_the_papers() -> None:
    config = compose_train(Path("run"), "experiment=dsd_paper", "data.root=FOLDER", "base.model.initialise=meta")
    architecture = build_architecture(config)
    trained = dict(architecture.trainable())
    assert (
        sum(p.numel() for p in architecture.parameters()) - sum(p.numel() for p in trained.values()) == FLUX_PARAMETERS
    )
    assert sum(p.numel() for name, p in trained.items() if ".lora_" in name) == LORA_512_PARAMETERS
    assert config.base.model.path == "black-forest-labs/FLUX.1-dev"
    trainer = config.trainer
    assert config.data.datamodule.batch_size * trainer.accumulate_grad_batches == 160
    assert (trainer.devices * trainer.num_nodes, trainer.max_steps) == (8, 100_000)
    optimizer = instantiate(config.optimizer)(list(trained.items()))
    assert isinstance(optimizer, torch.optim.AdamW)
    assert optimizer.defaults["lr"] == 1e-4
    assert instantiate(trainer.strategy).shard_frozen is False


COUNTS = re.findall(
    r"^\| `(\w+)` \|.*\| ([\d,]+) \| ([\d,]+) \|$", (CONF.parent / "docs" / "architecture.md").read_text(), re.M
)
"""Rows of the document's table: the architecture, its trained values on tiny and on FLUX.1-dev."""


@pytest.mark.parametrize(("arch", "on_tiny", "on_flux_dev"), COUNTS, ids=[row[0] for row in COUNTS])
def test_the_documents_state_what_is_trained(arch: str, on_tiny: str, on_flux_dev: str) -> None:
    assert {"parallel", "concat", "controlnet", "reference_tokens", "text_only"} <= {row[0] for row in COUNTS}
    for base, stated in (("tiny_untrained", on_tiny), ("flux_dev", on_flux_dev)):
        config = compose_train(Path("run"), f"base={base}", "base.model.initialise=meta", f"arch={arch}")
        trained = sum(parameter.numel() for _, parameter in build_architecture(config).trainable())
        assert f"{trained:,}" == stated, base


def test_tiny_and_flux_dev_differ_in_values_alone() -> None:
    tiny_keys, flux_keys = (
        set(compose_train(Path("run"), f"base={base}").base.model) - {"transformer_config"}
        for base in ("tiny", "flux_dev")
    )
    assert tiny_keys == flux_keys


# --- Wrong values.

WRONG = {
    "arch.lora.rank=0": ["arch.lora.rank=0", "at least 1"],
    "arch.lora.targets='('": ["arch.lora.targets='('", "regular expression"],
    "arch.lora.targets=proj_nowhere": ["proj_nowhere", "transformer_blocks.0.attn.to_q"],
    "base.quantize=int3": ["quantize='int3'", "int8, fp8, nf4"],
    "base.model.dtype=float8": ["base.model.dtype='float8'", "bfloat16"],
    "base.model.initialise=warm": ["base.model.initialise='warm'", "pretrained"],
    "base.model.guidance_scale=null": ["base.model.guidance_scale=None", "give a number"],
    "base.model.text_length=0": ["sequence_length=0", "at least 1"],
    "callbacks.checkpoint.every_n_steps=0": ["every_n_steps=0", "at least 1"],
    "callbacks.ema.decay=1.0": ["decay=1.0", "0.999"],
    "callbacks.probe.samples=0": ["samples=0", "at least 1"],
    "callbacks.samples.count=0": ["count=0", "at least 1"],
    "callbacks.samples.prompts_file=nowhere.jsonl": ["nowhere.jsonl", "no such file"],
    "data.datamodule.batch_size=0": ["data.datamodule.batch_size=0", "at least 1"],
    f"{SOURCE}.pairs=0": [f"{SOURCE}.pairs=0", "at least 1"],
    f"+{SOURCE}.workers=1": [f"{SOURCE}.workers=1", "pool=false"],
    f"{SOURCE}.resolution=[32,32]": [f"{SOURCE}.resolution=[32, 32]", "data=shards"],
    "density.deviation=0.0": ["density.deviation=0.0", "> 0"],
    "dropout.text=0.96": ["text=0.96", "sum <= 1"],
    "park_encoders=sometimes": ["park_encoders=sometimes", "true, false or auto"],
    "sampler.num_inference_steps=0": ["num_inference_steps=0", "at least 1"],
    "sampler.image_guidance=-1.0": ["image_guidance=-1.0", ">= 0"],
    "task.relation.captions.caption=0.5": ["0.5", "sum to 1"],
    "task.relation.frame_weights.target=0": ["frame_weights", "> 0"],
    "trainer.accelerator=abacus": ["abacus"],
    "trainer.max_steps=-1": ["trainer.max_steps"],
    "trainer.precision=17": ["17", "bf16-mixed"],
    "+dropout.image=0.1": ["dropout", "image"],
}


@pytest.mark.parametrize("wrong", WRONG)
def test_a_wrong_value_is_refused_by_name(wrong: str, tiny_base: Path, tmp_path: Path) -> None:
    few = [*FEW["miniature"], "trainer.max_steps=1", "logger=csv"]
    with pytest.raises(Exception) as refusal:  # noqa: PT011
        train(compose_train(tmp_path, *tiny(tiny_base, *few, wrong)), tmp_path)
    message = message_for_user(refusal.value)
    assert message is not None, repr(refusal.value)
    assert "Traceback" not in message
    for fragment in WRONG[wrong]:
        assert fragment in message


def test_a_fixed_and_a_mode_density_refuse_what_they_cannot_do(tiny_base: Path, tmp_path: Path) -> None:
    for choices in (("density=mode", "density.scale=3.0"), ("shift=fixed", "shift.factor=0.0")):
        with pytest.raises(Exception, match=re.escape(choices[1])):
            build_module(compose_train(tmp_path, *tiny(tiny_base, *FEW["miniature"], *choices)))


def test_training_nothing_is_refused(tiny_base: Path, tmp_path: Path) -> None:
    config = compose_train(tmp_path, "arch=text_only", "arch.lora=null", f"base.model.path={tiny_base}")
    with pytest.raises(ValueError, match=r"give arch\.lora, or arch\.train_base=true"):
        build_architecture(config)
    config = compose_train(tmp_path, "arch=text_only", "arch.train_base=true", f"base.model.path={tiny_base}")
    with pytest.raises(Exception, match=r"arch\.lora=null"):
        build_architecture(config)
