"""Wrong numbers and kinds are refused with value and remedy in every command; what `conf/` holds is accepted."""

from __future__ import annotations

import copy
import functools
import math
from pathlib import Path
from typing import Any

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from hypothesis import given
from hypothesis import strategies as st
from omegaconf import DictConfig, OmegaConf
from support.choices import GROUPS, options
from support.commands import SOURCE, compose_train

from dsd_lightning.cli.settings import LARGEST_SEED, RANGES, Range, SettingError, check_settings

NEEDED = {
    "write_shards": ["out=FOLDER"],
    "write_depth": ["source=IMAGES", "out=FOLDER"],
    "encode_shards": ["root=FOLDER", "out=FOLDER"],
}

WRONG = {
    "train": {
        "seed=-1": f"seed=-1 must be a whole number from 0 to {LARGEST_SEED}",
        "seed=null": "seed=null must be a whole number",
        "seed=abc": "seed='abc' must be a whole number",
        "seed=1.5": "seed=1.5 must be a whole number",
        "seed=99999999999": "seed=99999999999 must be",
        "optimizer.lr=-1": "optimizer.lr=-1 must be a number of at least 0",
        "optimizer.lr=abc": "optimizer.lr='abc' must be a number",
        "optimizer.lr=nan": "optimizer.lr=nan must be a finite number",
        "optimizer.lr=null": "optimizer.lr=null must be a number",
        "optimizer.muon_lr=-0.1": "optimizer.muon_lr=-0.1 must be",
        "optimizer.betas=0.9": "optimizer.betas=0.9 must be a list",
        "optimizer.betas=[a,0.9]": "optimizer.betas=['a', 0.9] must be a list",
        "trainer.max_steps=1e4": "trainer.max_steps=10000.0 must be a whole number of at least 1: write 10000",
        "trainer.max_steps=0": "trainer.max_steps=0 must be",
        "trainer.max_steps=null": "trainer.max_steps=null must be",
        "trainer.accumulate_grad_batches=0": "at least 1",
        "trainer.gradient_clip_val=-1": "at least 0, or null",
        "schedule.num_warmup_steps=-5": "at least 0",
        "schedule.num_warmup_steps=abc": "schedule.num_warmup_steps='abc' must be a whole number",
        "data.datamodule.batch_size=abc": "data.datamodule.batch_size='abc' must be a whole number",
        "data.datamodule.batch_size=2.5": "data.datamodule.batch_size=2.5 must be a whole number",
        "data.datamodule.batch_size=4.0": "must be a whole number: write 4",
        f"{SOURCE}.pairs=many": f"{SOURCE}.pairs='many' must be a whole number",
        f"{SOURCE}.resolution=[64,wide]": f"{SOURCE}.resolution=[64, 'wide'] must be a list",
        "sampler.guidance_scale=nan": "sampler.guidance_scale=nan must be a finite number",
        "sampler.image_guidance=inf": "sampler.image_guidance=inf must be a finite number",
        "sampler.num_inference_steps=2.5": "sampler.num_inference_steps=2.5 must be a whole number",
        "dropout.text=often": "dropout.text='often' must be a number",
        "dropout.text=nan": "finite",
        "density.deviation=-inf": "finite",
        "arch.lora.rank=1.5": "arch.lora.rank=1.5 must be a whole number",
        "callbacks.ema.decay=abc": "callbacks.ema.decay='abc' must be a number",
        "callbacks.ema.warmup=1": "callbacks.ema.warmup=1 must be true or false",
        "callbacks.checkpoint.keep=two": "callbacks.checkpoint.keep='two' must be",
        "plan=flase": "plan='flase' must be true or false",
    },
    "distill": {
        "seed=-1": "seed=-1 must be",
        "seed=null": "seed=null must be",
        "count=1.5": "count=1.5 must be a whole number",
        "partition_size=0": "partition_size=0 must be",
        "stages.verify.least_confidence=high": "least_confidence='high' must be a number or null",
        "expected.split=nan": "expected.split=nan must be a finite number",
        "dry_run=yess": "dry_run='yess' must be true or false",
    },
    "evaluate": {
        "seed=-1": "seed=-1 must be",
        "seed=abc": "seed='abc' must be",
        "copies=1.5": "copies=1.5 must be a whole number",
        "coverage=1.5": "coverage=1.5 must be a number from 0 to 1",
        "method.maker.sampling.guidance_scale=nan": "must be a finite number",
        "method.maker.sampling.steps=abc": "method.maker.sampling.steps='abc' must be",
        "protocol.measures=cp": "protocol.measures='cp' must be a list",
        "protocol.image_side=big": "protocol.image_side='big' must be a whole number",
    },
    "write_shards": {"seed=-1": "seed=-1 must be", "count=ten": "count='ten' must be", "max_bytes=nan": "finite"},
    "write_depth": {"workers=some": "workers='some' must be", "keep_maps=2": "keep_maps=2 must be true or false"},
    "encode_shards": {"seed=-1": "seed=-1 must be", "batch_size=0": "batch_size=0 must be"},
}


@functools.cache
def composed(command: str) -> DictConfig:
    return compose_train(Path("run"), *NEEDED.get(command, ()), name=command)


def changed(command: str, override: str) -> DictConfig:
    """Return a command's configuration with one value changed as Hydra reads it."""
    config = copy.deepcopy(composed(command))
    (parsed,) = OverridesParser.create().parse_overrides([override])
    OmegaConf.update(config, parsed.key_or_group, parsed.value())
    return config


@pytest.mark.parametrize("command", WRONG)
def test_wrong_values_are_refused_with_value_and_remedy(command: str) -> None:
    for override, expected in WRONG[command].items():
        with pytest.raises(SettingError) as refusal:
            check_settings(changed(command, override))
        assert expected in str(refusal.value), override
        assert str(refusal.value).startswith(override.partition("=")[0]), "the name that the user gave"
        assert override.partition("=")[0] in str(refusal.value)


@pytest.mark.parametrize("command", WRONG)
def test_a_commands_own_configuration_is_accepted(command: str) -> None:
    check_settings(composed(command))


@pytest.mark.parametrize("group", ["experiment", "callbacks", "optimizer"])
def test_what_can_be_chosen_is_accepted(group: str) -> None:
    for option in options(group):
        check_settings(compose_train(Path("run"), f"{group}={option}", as_it_is=True))


@pytest.mark.long
@pytest.mark.parametrize("group", sorted({*GROUPS} - {"experiment", "callbacks", "optimizer"}))
def test_all_that_can_be_chosen_is_accepted(group: str) -> None:
    for option in options(group):
        root = ["data.root=FOLDER"] if option == "shards" else []
        check_settings(compose_train(Path("run"), f"{group}={option}", *root, as_it_is=True))


@given(st.one_of(st.integers(), st.floats(), st.text(), st.booleans(), st.none(), st.lists(st.integers())))
def test_a_range_admits_numbers_of_its_kind_between_its_ends_alone(value: Any) -> None:
    for allowed in (*RANGES.values(), Range(int, 0, 5), Range(float, -1, 1, optional=True)):
        kinds = int if allowed.kind is int else int | float
        is_number = isinstance(value, kinds) and not isinstance(value, bool)
        expected = is_number and allowed.least <= value <= (math.inf if allowed.most is None else allowed.most)
        assert allowed.admits(value) == (expected or (value is None and allowed.optional))
