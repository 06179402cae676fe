"""Command, page and benchmark use a model with the guidances and steps that it records, unless the user gives others."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hydra.utils import instantiate
from support.commands import ROOT, SOURCE, compose_train
from support.exported_run import LORA, make_run

from dsd_lightning.generation.generate import complete
from dsd_lightning.generation.jobs import Job
from dsd_lightning.models.generation_settings import GENERATION
from dsd_lightning.pipeline import TwoFramePipeline

NAMES = ("num_inference_steps", "guidance_scale", "image_guidance", "text_guidance")
OWN = (3, 2.5, 1.25, 1.0)


@pytest.fixture(scope="module")
def run(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    recorded = [f"sampler.{name}={value}" for name, value in zip(NAMES, OWN, strict=True)]
    size = f"{SOURCE}.resolution=[32,32]"
    return make_run(tmp_path_factory.mktemp("run"), tiny_base, "arch=parallel", *LORA, size, *recorded).folder


def evaluated(folder: Path, *overrides: str) -> tuple[float | None, ...]:
    """Return what `python evaluate.py OVERRIDES` samples with."""
    config = compose_train(folder, *overrides, name="evaluate")
    sampling = instantiate(config.method.maker).sampling
    return sampling.steps, sampling.guidance_scale, sampling.image_guidance, sampling.text_guidance


def test_a_runs_own_settings_are_taken_by_all_three(run: Path, tmp_path: Path) -> None:
    pipeline = TwoFramePipeline.from_run(run, device="cpu")
    assert tuple(pipeline.config[name] for name in NAMES) == OWN
    job = complete(Job(Path("a.png"), "a hat", Path("b.png")), pipeline)
    assert (job.steps, job.guidance, job.i_guidance, job.t_guidance) == OWN
    given = [f"method.maker.run={run}", "method.maker.device=cpu"]
    assert evaluated(tmp_path, *given) == OWN
    other = evaluated(tmp_path, *given, "method.maker.sampling.guidance_scale=4", "method.maker.sampling.steps=2")
    assert other == (2, 4.0, 1.25, 1.0)


def test_the_page_starts_at_the_models_own_settings(run: Path) -> None:
    pytest.importorskip("gradio")
    from dsd_lightning.ui.page import build_page
    from dsd_lightning.ui.studio import Studio

    fields = build_page(Studio(TwoFramePipeline.from_run(run, device="cpu"), False)).blocks.values()
    shown = {field.label: field.value for field in fields if hasattr(field, "label") and hasattr(field, "value")}
    assert tuple(shown[name] for name in ("Steps", "Guidance", "Image guidance", "Text guidance")) == OWN


def test_the_shipped_miniature_is_used_with_what_its_file_records(tmp_path: Path) -> None:
    recorded = json.loads((ROOT / "assets" / "tiny-dsd" / GENERATION).read_text())
    assert evaluated(tmp_path, "method.maker.device=cpu") == tuple(recorded[each] for each in NAMES)
