"""The other FLUX.1 bases: built on meta they have FLUX.1-dev's shapes, and a twin without guidance trains and is used."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import pytest
import torch
from support.choices import ARCHITECTURES
from support.commands import SOURCE, compose_train
from support.exported_run import export, make_run
from support.finished_runs import finish
from support.models.golden_pipeline import IMAGE
from torch import Tensor

from dsd_lightning.export.layouts import possible_formats
from dsd_lightning.flux.base import FluxBase
from dsd_lightning.models.build import build_architecture
from dsd_lightning.models.restore import restore
from dsd_lightning.pipeline import TwoFramePipeline
from dsd_lightning.rectified_flow import NoShift, ResolutionShift

GUIDANCE_EMBEDDER = 256 * 3072 + 3072 + 3072 * 3072 + 3072
"""Parameters that FLUX.1-schnell's transformer lacks."""

SHIPPED_ENCODER = ("base.image_encoder.path=assets/tiny-image-encoder", "base.image_encoder.config=null")


@cache
def parameters(base: str) -> int:
    choices = (f"base={base}", "arch=reference_tokens", "arch.lora.rank=1", "base.model.initialise=meta")
    architecture = build_architecture(compose_train(Path("run"), *choices))
    return sum(parameter.numel() for parameter in architecture.parameters() if not parameter.requires_grad)


@pytest.mark.parametrize(
    ("base", "lacks", "guidance", "steps", "text_length"),
    [
        ("flux_schnell", GUIDANCE_EMBEDDER, None, 4, 256),
        ("flux_krea", 0, 1.0, 28, 512),
        ("flux_kontext", 0, 1.0, 28, 512),
    ],
)
def test_each_has_its_shapes_and_settings(
    base: str, lacks: int, guidance: float | None, steps: int, text_length: int
) -> None:
    assert parameters("flux_dev") - parameters(base) == lacks
    config = compose_train(Path("run"), f"base={base}")
    assert config.base.model.guidance_scale == guidance
    assert config.base.model.text_length == text_length
    assert config.sampler.num_inference_steps == steps
    assert config.base.model.path.startswith("black-forest-labs/FLUX.1-")


def test_the_shift_is_the_schedulers(tiny_base: Path, tiny_schnell: Path) -> None:
    assert FluxBase(str(tiny_schnell)).shift() == NoShift()
    assert isinstance(FluxBase(str(tiny_base)).shift(), ResolutionShift)


def test_schnells_run_is_the_papers_on_another_base() -> None:
    paper, ours = (
        compose_train(Path("run"), f"experiment={name}", "data.root=FOLDER") for name in ("dsd_paper", "dsd_schnell")
    )
    assert ours.base.model.path == "black-forest-labs/FLUX.1-schnell"
    same = ("arch", "optimizer", "trainer", "data", "callbacks")
    assert all(paper[part] == ours[part] for part in same)


def few(base: Path) -> list[str]:
    """Return overrides for a run of two steps."""
    return [
        f"base.model.path={base}",
        "base.model.dtype=float32",
        "base.model.text_length=24",
        "base.pixels_per_token=8",
        *SHIPPED_ENCODER,
        f"{SOURCE}.pairs=4",
        f"{SOURCE}.validation_pairs=2",
        f"{SOURCE}.resolution=[64,64]",
        "data.datamodule.batch_size=2",
        "trainer.max_steps=2",
        "trainer.accelerator=cpu",
        "schedule.num_warmup_steps=1",
        "callbacks=minimal",
        "logger=csv",
    ]


def latents(run: Path) -> Tensor:
    pipeline = TwoFramePipeline.from_run(run, device="cpu")
    pipeline.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(0)
    size = {"height": 64, "width": 64}
    images: Tensor = pipeline(
        IMAGE, "a hat", num_inference_steps=2, generator=generator, output_type="latent", **size
    ).images
    return images


QUICK = ("parallel", "reference_tokens")


@pytest.mark.parametrize(
    "arch", [pytest.param(arch, marks=() if arch in QUICK else pytest.mark.long) for arch in ARCHITECTURES]
)
def test_the_twin_without_guidance_trains_resumes_and_is_used(arch: str, tiny_schnell: Path, tmp_path: Path) -> None:
    with_factors = compose_train(Path("run"), f"arch={arch}").arch.get("lora") is not None
    choices = ["base=flux_schnell", f"arch={arch}", *(["arch.lora.rank=2"] if with_factors else []), *few(tiny_schnell)]
    run = finish(tmp_path / "run", *choices)
    finish(run, *choices, "trainer.max_steps=3", "ckpt=last")
    assert (run / "checkpoints" / "step_00000003").is_dir()
    restored = restore(run)
    assert not restored.architecture.transformer.config.guidance_embeds
    adapter = tmp_path / "adapter"
    from dsd_lightning.export.command import main

    assert main([str(run), str(adapter)]) == 0
    assert torch.equal(latents(run), latents(adapter))


@pytest.mark.parametrize("arch", ["parallel", "text_only"])
def test_the_twin_without_guidance_is_exported_in_every_format(arch: str, tiny_schnell: Path, tmp_path: Path) -> None:
    choices = ("base=flux_schnell", "base.model.dtype=float32", "base.model.text_length=24", "arch.lora.rank=2")
    run = make_run(tmp_path / "run", tiny_schnell, f"arch={arch}", *choices)
    for layout in possible_formats(run.architecture):
        out = export(run, tmp_path / layout, "--format", layout, "--base-model", "black-forest-labs/FLUX.1-schnell")
        assert "license: apache-2.0" in (out / "README.md").read_text()


def test_schnells_experiment_trains_on_the_twin(tiny_schnell: Path, tmp_path: Path) -> None:
    overrides = [
        *few(tiny_schnell),
        "data=miniature",
        f"~{SOURCE}.workers",
        f"~{SOURCE}.max_damaged",
        "arch.lora.rank=2",
        "trainer/strategy=single",
        "trainer.devices=1",
        "trainer.val_check_interval=2",
        "trainer.accumulate_grad_batches=1",
    ]
    overrides.remove("schedule.num_warmup_steps=1")
    run = finish(tmp_path, "experiment=dsd_schnell", *overrides)
    assert (run / "checkpoints" / "step_00000002").is_dir()
