"""Cards' code runs as written, exports are read back with what they were trained with, from any working directory."""

from __future__ import annotations

import ast
import json
import re
import shlex
from pathlib import Path

import pytest
import torch
from PIL import Image
from support.choices import ARCHITECTURES
from support.commands import SOURCE
from support.exported_run import LORA, MadeRun, export, make_run
from support.models.golden_pipeline import IMAGE

from dsd_lightning.export.command import main
from dsd_lightning.export.layouts import possible_formats
from dsd_lightning.export.stock import ExportError
from dsd_lightning.export.usage import Use, usage_of
from dsd_lightning.generation.command import main as generate
from dsd_lightning.generation.provenance import read_provenance
from dsd_lightning.models.generation_settings import (
    GENERATION,
    GenerationSettings,
    GenerationSettingsError,
    read_settings,
)
from dsd_lightning.pipeline import TwoFramePipeline

SETTINGS = (
    "base.model.text_length=16",
    f"{SOURCE}.resolution=[32,32]",
    "sampler.num_inference_steps=2",
    "sampler.guidance_scale=2.5",
    "sampler.image_guidance=1.25",
    "sampler.text_guidance=1.25",
)
RECORDED = GenerationSettings(16, 32, 32, 2, 2.5, 1.25, 1.25, "last")
WITHOUT_LORA = ("controlnet", "ip_adapter", "ip_adapter_plus")


@pytest.fixture(scope="module")
def runs(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, MadeRun]:
    folder = tmp_path_factory.mktemp("runs")
    choices = {arch: (() if arch in WITHOUT_LORA else LORA) for arch in ARCHITECTURES}
    return {
        arch: make_run(folder / arch, tiny_base, f"arch={arch}", *lora, *SETTINGS) for arch, lora in choices.items()
    }


@pytest.mark.image_encoder
@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_the_code_of_every_card_runs_as_written(
    arch: str, runs: dict[str, MadeRun], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the folder above the export: neither training, export nor generation needs the checkout's as the present one."""
    monkeypatch.chdir(tmp_path)
    IMAGE.save("reference.png")
    for layout in possible_formats(runs[arch].architecture):
        export(runs[arch], Path(f"{arch}-{layout}"), "--format", layout)
        card = (tmp_path / f"{arch}-{layout}" / "README.md").read_text()
        blocks = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
        assert blocks, layout
        for block in blocks:
            names: dict[str, object] = {}
            exec(block, names)
            image = names.get("result", names["image"])
            assert isinstance(image, Image.Image)
            assert image.size == (32, 32)
        for line in re.findall(r"```bash\npython generate\.py (.*?)\n```", card, re.DOTALL):
            assert generate(shlex.split(line)) == 0
            provenance = read_provenance(Path("output.png"))
            assert provenance is not None
            assert (provenance["steps"], provenance["guidance_scale"], provenance["text_guidance"]) == (2, 2.5, 1.25)
        assert "optimizer/" not in card
        assert "train/" not in card


@pytest.mark.parametrize("layout", ["adapter", "official", "comfyui", "diffusers", "transformer"])
def test_every_export_records_what_it_was_trained_with(layout: str, runs: dict[str, MadeRun], tmp_path: Path) -> None:
    out = export(runs["parallel"], tmp_path / "out", "--format", layout)
    assert read_settings(out) == RECORDED
    again = tmp_path / "again"
    if layout == "adapter":
        assert main([str(out), str(again)]) == 0
        assert read_settings(again) == RECORDED


def test_exports_are_read_back_with_it_and_a_flag_overrides_the_text_length(
    runs: dict[str, MadeRun], tiny_base: Path, tmp_path: Path
) -> None:
    official = export(runs["parallel"], tmp_path / "official", "--format", "official")
    adapter = export(runs["parallel"], tmp_path / "adapter")
    for pipeline in (
        TwoFramePipeline.load(tiny_base, official, device="cpu"),
        TwoFramePipeline.load(tiny_base, official / "transformer", device="cpu"),
        TwoFramePipeline.from_run(adapter, device="cpu"),
        TwoFramePipeline.from_run(runs["parallel"].folder, device="cpu"),
    ):
        config = pipeline.config
        assert (config.text_length, config.default_size, config.num_inference_steps) == (16, 32, 2)
        assert (config.guidance_scale, config.image_guidance, config.text_guidance) == (2.5, 1.25, 1.25)
        assert pipeline.encode_prompt(["a hat"]).sequence.shape[1] == 16
    longer = TwoFramePipeline.load(tiny_base, official, text_length=40, device="cpu")
    assert longer.encode_prompt(["a hat"]).sequence.shape[1] == 40
    assert torch.equal(
        TwoFramePipeline.from_run(adapter, text_length=40, device="cpu").encode_prompt(["a hat"]).sequence,
        longer.encode_prompt(["a hat"]).sequence,
    )


def test_readers_that_cannot_know_the_text_length_are_warned_of(
    runs: dict[str, MadeRun], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    out = export(runs["parallel"], tmp_path / "out", "--format", "comfyui")
    assert "16 T5 tokens a prompt, but ComfyUI and the official code always take 512" in caplog.text
    assert "always take 512" in (out / "README.md").read_text()
    caplog.clear()
    export(runs["parallel"], tmp_path / "adapter")
    assert "512" not in caplog.text


@pytest.mark.parametrize(
    ("key", "value"),
    [("text_length", 0), ("text_length", "x"), ("guidance_scale", -1), ("weights", "other"), ("width", True)],
)
def test_a_record_that_makes_no_sense_is_refused(key: str, value: object, tmp_path: Path) -> None:
    (tmp_path / GENERATION).write_text(json.dumps({key: value}))
    with pytest.raises(GenerationSettingsError, match=f"{key}={value!r} makes no sense"):
        read_settings(tmp_path)


@pytest.mark.parametrize("layout", ["adapter", "official", "transformer"])
def test_names_cannot_add_code_or_html_to_a_card(layout: str) -> None:
    name = 'x"); import os; os.system("rm'
    use = Use(layout, name, name, RECORDED, ("reference", "target"), "parallel", "FluxControlPipeline")
    for block in re.findall(r"```python\n(.*?)```", usage_of(use), re.DOTALL):
        assert "os" not in {node.id for node in ast.walk(ast.parse(block)) if isinstance(node, ast.Name)}
    for line in re.findall(r"```bash\n(.*?)\n```", usage_of(use), re.DOTALL):
        assert shlex.split(line).count(name) >= 1
    with pytest.raises(ExportError, match="control character"):
        Use(layout, "a\n```\nb", name, RECORDED, ("target",), "parallel")


def test_a_runs_metrics_are_numbers_of_known_names(runs: dict[str, MadeRun], tmp_path: Path) -> None:
    summary = runs["parallel"].folder / "summary.json"
    before = summary.read_text()
    summary.write_text(
        json.dumps({"val/<script>": 1.0, "val/loss": "<script>", "val/loss_right": 0.5, "optimizer/lr": 1})
    )
    try:
        card = (export(runs["parallel"], tmp_path / "out") / "README.md").read_text()
    finally:
        summary.write_text(before)
    assert "<script>" not in card
    assert "| `val/loss_right` | 0.5 |" in card
    assert "optimizer/lr" not in card
