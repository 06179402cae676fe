"""Guidance distillation asks for the extrapolation from a weaker model, trains the model alone, and keeps its checkpoints."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import FluxTransformer2DModel
from support.models.architecture_rows import base
from torch import Tensor

from dsd_lightning.architectures.guidance_distillation import GuidanceDistillation
from dsd_lightning.architectures.text_only import TextOnly
from dsd_lightning.checkpoints.adapter import check_header, header_of
from dsd_lightning.pairs import Condition, TextEmbeddings

BATCH = 3


def transformer(seed: int, **changes: Any) -> FluxTransformer2DModel:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model: FluxTransformer2DModel = FluxTransformer2DModel.from_config({**base().config, **changes})
    return model


@pytest.fixture
def weaker(tmp_path: Path) -> Path:
    transformer(1).save_pretrained(tmp_path / "weaker")
    return tmp_path / "weaker"


def distillation(weaker: Path) -> GuidanceDistillation:
    return GuidanceDistillation(
        transformer(0),
        str(weaker),
        trained_guidance=2.0,
        guidance_range=(1.0, 4.0),
        interval=(0.2, 0.9),
        train_base=True,
    )


def inputs(guidance: float, timestep: float) -> tuple[Tensor, Tensor, Condition]:
    generator = torch.Generator().manual_seed(0)
    text = TextEmbeddings(torch.randn(BATCH, 5, 16, generator=generator), torch.randn(BATCH, 8, generator=generator))
    noisy = torch.randn(BATCH, 6, 8, 8, generator=generator)
    return noisy, torch.full((BATCH,), timestep), Condition(text, torch.full((BATCH,), guidance))


def target(model: GuidanceDistillation, guidance: float, timestep: float) -> Tensor:
    noisy, time, condition = inputs(guidance, timestep)
    return model.target_velocity(torch.zeros_like(noisy), torch.zeros_like(noisy), noisy, time, condition)


def predicted(network: FluxTransformer2DModel, guidance: float, timestep: float) -> Tensor:
    with torch.no_grad():
        return TextOnly(network)(*inputs(guidance, timestep))


@pytest.mark.parametrize("guidance", [1.0, 2.0, 3.5])
def test_the_target_is_extrapolated_from_the_weaker_models_prediction(weaker: Path, guidance: float) -> None:
    strong, weak = predicted(transformer(0), 2.0, 0.5), predicted(transformer(1), 2.0, 0.5)
    expected = weak + guidance * (strong - weak)
    assert torch.allclose(target(distillation(weaker), guidance, 0.5), expected, atol=1e-5)
    assert (guidance == 1.0) == torch.allclose(expected, strong, atol=1e-5)


@pytest.mark.parametrize("timestep", [0.1, 0.95])
def test_guidance_does_not_apply_outside_its_interval(weaker: Path, timestep: float) -> None:
    assert torch.allclose(
        target(distillation(weaker), 3.5, timestep), predicted(transformer(0), 2.0, timestep), atol=1e-6
    )


def test_the_model_alone_is_trained_and_the_target_stays(weaker: Path) -> None:
    model = distillation(weaker)
    before = target(model, 3.0, 0.5)
    assert {name.split(".")[0] for name, _ in model.trainable()} == {"transformer"}
    with torch.no_grad():
        for _, parameter in model.trainable():
            parameter.add_(0.1)
    assert torch.equal(target(model, 3.0, 0.5), before)


def test_its_checkpoints_are_those_of_the_plain_model(weaker: Path) -> None:
    plain = TextOnly(transformer(2), train_base=True)
    check_header(header_of(distillation(weaker)), plain)
    assert [name for name, _ in distillation(weaker).trainable()] == [name for name, _ in plain.trainable()]


def test_it_is_built_without_memory_and_without_the_weaker_weights(tmp_path: Path) -> None:
    with torch.device("meta"):
        model = GuidanceDistillation(transformer(0), str(tmp_path / "absent"), 2.0, (1.0, 4.0), (0.0, 1.0))
    assert {parameter.device.type for parameter in model.parameters()} == {"meta"}


def test_transformers_that_do_not_fit_are_refused(tmp_path: Path, weaker: Path) -> None:
    with pytest.raises(ValueError, match="guidance embedding"):
        GuidanceDistillation(transformer(0, guidance_embeds=False), str(weaker), 2.0, (1.0, 4.0), (0.0, 1.0))
    with pytest.raises(ValueError, match=r"arch\.weaker.*shapes"):
        GuidanceDistillation(transformer(0, num_layers=2), str(weaker), 2.0, (1.0, 4.0), (0.0, 1.0))
    with pytest.raises(ValueError, match=r"arch\.weaker=.*absent"):
        GuidanceDistillation(transformer(0), str(tmp_path / "absent"), 2.0, (1.0, 4.0), (0.0, 1.0))
