"""FLUX.1-dev, built on meta: every architecture has the size that the documents state, the paper's run is the paper's."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from hydra.utils import instantiate
from support.choices import ARCHITECTURES
from support.commands import CONF, compose_train

from dsd_lightning.architectures.base import Architecture
from dsd_lightning.models.build import build_architecture

PARAMETERS = 11_901_408_320
LORA_PARAMETERS_A_RANK = 2_091_909_120 // 512

COUNTS = {
    name: (on_tiny, on_flux_dev)
    for name, on_tiny, on_flux_dev in re.findall(
        r"^\| `(\w+)` \|.*\| ([\d,]+) \| ([\d,]+) \|$", (CONF.parent / "docs" / "architecture.md").read_text(), re.M
    )
}
"""Rows of the document's table: trained values on tiny and on FLUX.1-dev, by architecture."""


def build(*choices: str) -> Architecture:
    return build_architecture(compose_train(Path("run"), "base.model.initialise=meta", *choices))


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_flux_dev_on_meta_has_the_documented_size(arch: str) -> None:
    architecture = build("base=flux_dev", f"arch={arch}")
    assert all(parameter.device.type == "meta" for parameter in architecture.parameters())
    frozen = [parameter for parameter in architecture.transformer.parameters() if not parameter.requires_grad]
    trained = dict(architecture.trainable())
    assert sum(parameter.numel() for parameter in frozen) == PARAMETERS
    assert {parameter.dtype for parameter in frozen} == {torch.bfloat16}
    assert {parameter.dtype for parameter in trained.values()} == {torch.float32}
    factors = [parameter for name, parameter in trained.items() if ".lora_" in name]
    config = compose_train(Path("run"), f"arch={arch}").arch
    rank = config.lora.rank if config.lora is not None else 0
    assert sum(factor.numel() for factor in factors) == rank * LORA_PARAMETERS_A_RANK
    if arch in COUNTS:
        counts = [trained, dict(build("base=tiny_untrained", f"arch={arch}").trainable())]
        on_flux_dev, on_tiny = (sum(parameter.numel() for parameter in count.values()) for count in counts)
        assert (f"{on_tiny:,}", f"{on_flux_dev:,}") == COUNTS[arch]


def test_the_documents_list_the_architectures() -> None:
    assert {"parallel", "concat", "controlnet", "reference_tokens", "text_only"} <= COUNTS.keys()


def test_factors_are_added_where_an_architecture_has_none_by_itself() -> None:
    trained = build("base=flux_dev", "arch=ip_adapter", "+arch/lora=all_linear", "arch.lora.rank=512").trainable()
    factors = [parameter for name, parameter in trained if ".lora_" in name]
    assert sum(factor.numel() for factor in factors) == 512 * LORA_PARAMETERS_A_RANK


def test_the_papers_run_is_the_papers() -> None:
    config = compose_train(Path("run"), "experiment=dsd_paper", "data.root=FOLDER", "base.model.initialise=meta")
    architecture = build_architecture(config)
    trained = dict(architecture.trainable())
    total = sum(p.numel() for p in architecture.parameters())
    assert total - sum(p.numel() for p in trained.values()) == PARAMETERS
    assert sum(p.numel() for name, p in trained.items() if ".lora_" in name) == 512 * LORA_PARAMETERS_A_RANK
    assert config.base.model.path == "black-forest-labs/FLUX.1-dev"
    trainer = config.trainer
    assert config.data.datamodule.batch_size * trainer.accumulate_grad_batches == 160
    assert (trainer.devices * trainer.num_nodes, trainer.max_steps) == (8, 100_000)
    optimizer = instantiate(config.optimizer)(list(trained.items()))
    assert isinstance(optimizer, torch.optim.AdamW)
    assert optimizer.defaults["lr"] == 1e-4
    assert instantiate(trainer.strategy).shard_frozen is False
