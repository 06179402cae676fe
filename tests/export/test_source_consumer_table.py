"""What every source of weights gives every consumer: the same latents, or a refusal with a reason; docs/export.md shows it."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import FluxControlPipeline
from safetensors.torch import save_file
from support.commands import CONF, compose_train
from support.exported_run import LORA, with_random_weights
from support.models.golden_pipeline import IMAGE
from torch import Tensor

from dsd_lightning.checkpoints.adapter import header_of
from dsd_lightning.checkpoints.folder_io import STEP_FOLDER, FolderCheckpointIO
from dsd_lightning.cli.errors import message_for_user
from dsd_lightning.evaluation.samples import methods
from dsd_lightning.evaluation.samples.generate import Sampling
from dsd_lightning.export.command import export_layout
from dsd_lightning.export.command import main as export
from dsd_lightning.flux import tokens
from dsd_lightning.generation import arguments, models
from dsd_lightning.models.build import build_architecture
from dsd_lightning.pipeline import TwoFramePipeline
from dsd_lightning.pipeline.inputs import to_pixels
from dsd_lightning.randomness import normal
from dsd_lightning.runs.folder import write_config

SIDE, TEXT_LENGTH, CLOSE = 64, 24, 1e-4
NOISE = tokens.pack(normal((1, 6, SIDE // 4, SIDE // 2), "noise"))
CALL: dict[str, Any] = {"num_inference_steps": 2, "guidance_scale": 3.5, "latents": NOISE, "output_type": "latent"}
SETTINGS = [f"base.model.text_length={TEXT_LENGTH}", "arch=parallel"]

SOURCES = ("run", "checkpoint", "adapter", "official", "official, trained on", "saved pipeline", "diffusers")
VARIANTS = ("EMA", "last", "LoRA on top", "unmerged")


def latents_of(pipeline: TwoFramePipeline) -> Tensor:
    pipeline.set_progress_bar_config(disable=True)
    latents: Tensor = pipeline(
        IMAGE, "a hat", height=SIDE, width=SIDE, image_guidance=1.0, text_guidance=1.0, **CALL
    ).images
    return latents


def write_run(folder: Path, base: Path, *choices: str) -> Path:
    """Write a run's folder with random trained weights, its EMA weights unlike its last ones."""
    config = compose_train(folder, f"base.model.path={base}", *SETTINGS, *choices)
    architecture = with_random_weights(build_architecture(config))
    last = {name: value.detach().clone() for name, value in architecture.trainable()}
    ema = {name: 0.5 * value for name, value in last.items()}
    state = {"state_dict": last, "ema": ema, "adapter": header_of(architecture)}
    FolderCheckpointIO().save_checkpoint(state, folder / "checkpoints" / STEP_FOLDER.format(3))
    write_config(config, folder)
    return folder


class Setting:
    """The sources, an additional LoRA file, and the latents that each source stands for."""

    def __init__(self, root: Path, base: Path) -> None:
        self.base, self.root = base, root
        self.run = write_run(root / "run", base, *LORA)
        self.folders = {"run": self.run, "checkpoint": self.run / "checkpoints" / STEP_FOLDER.format(3)}
        for name, layout in {"adapter": "adapter", "official": "official", "diffusers": "diffusers"}.items():
            self.folders[name] = root / name
            assert export([str(self.run), str(root / name), "--format", layout]) == 0
        self.folders["official, trained on"] = write_run(
            root / "on", base, f"init_from={root / 'official'}", "arch.lora=null"
        )
        self.folders["saved pipeline"] = root / "saved"
        TwoFramePipeline.from_run(self.run, device="cpu").save_pretrained(root / "saved")
        width = 32
        self.lora = root / "extra.safetensors"
        layer = "transformer.transformer_blocks.0.attn.to_q"
        factors = {
            f"{layer}.lora_{side}.weight": normal((width, 2)[:: 1 if side == "B" else -1], side) for side in "AB"
        }
        save_file({name: value.contiguous() for name, value in factors.items()}, self.lora)
        # Official exports and diffusers folders hold the EMA weights, the run trained on official ones has its own.
        self.expected = {
            (source, variant): latents_of(
                TwoFramePipeline.from_run(
                    self.folders["official, trained on"] if source == "official, trained on" else self.run,
                    ema=variant != "last",
                    lora=self.lora if variant == "LoRA on top" else None,
                    device="cpu",
                )
            )
            for source in SOURCES
            for variant in VARIANTS
        }
        for variant in ("last", "LoRA on top"):
            assert (self.expected["run", variant] - self.expected["run", "EMA"]).abs().max() > 100 * CLOSE

    # --- The consumers: from a source and a variant to latents.

    def generate(self, source: str, variant: str) -> Tensor:
        folder = str(self.folders[source])
        is_ours = source in ("run", "checkpoint", "adapter", "official, trained on", "saved pipeline")
        flags = ["--run", folder] if is_ours else ["--model_path", folder, "--base_path", str(self.base)]
        if variant == "LoRA on top":
            beside = [] if is_ours else [folder]
            flags += ["--lora_path", *beside, str(self.lora)]
        flags += {"last": ["--no_ema"], "unmerged": ["--unmerged_lora"]}.get(variant, [])
        chosen = arguments.parser().parse_args([*flags, "--device", "cpu"])
        models.check_model(chosen)
        return latents_of(models.load_model(chosen))

    def from_python(self, source: str, variant: str) -> Tensor:
        folder = self.folders[source]
        if source == "saved pipeline":
            if variant != "EMA":
                pytest.skip("a saved pipeline is as it was saved")
            return latents_of(TwoFramePipeline.from_pretrained(folder))
        options: dict[str, Any] = {"merge_lora": variant != "unmerged", "device": "cpu"}
        if source in ("official", "diffusers"):
            if variant == "LoRA on top":
                options["lora"] = [folder, self.lora]
            return latents_of(TwoFramePipeline.load(self.base, folder, **options))
        lora = self.lora if variant == "LoRA on top" else None
        return latents_of(TwoFramePipeline.from_run(folder, ema=variant != "last", lora=lora, **options))

    def evaluate(self, source: str, variant: str) -> Tensor:
        sampling = Sampling(2, 3.5, 1.0, 1.0, SIDE)
        if source in ("official", "diffusers"):
            model = methods.official(str(self.base), str(self.folders[source]), "found", sampling, "cpu")
        else:
            model = methods.trained(str(self.folders[source]), sampling, device="cpu")
        return latents_of(model.pipeline)

    def init_from(self, source: str, variant: str) -> Tensor:
        lora = ["arch.lora=null"] if source.startswith("official") else list(LORA)
        config = compose_train(
            self.root, f"base.model.path={self.base}", *SETTINGS, f"init_from={self.folders[source]}", *lora
        )
        pipeline = TwoFramePipeline.from_run(self.run, device="cpu")
        components = {**pipeline.components, "transformer": build_architecture(config).eval()}
        return latents_of(TwoFramePipeline(**components, text_length=TEXT_LENGTH, default_size=SIDE))

    def stock(self, source: str, variant: str) -> Tensor:
        pipeline = FluxControlPipeline.from_pretrained(self.folders[source])
        pipeline.set_progress_bar_config(disable=True)
        pixels = to_pixels(IMAGE, SIDE, SIDE)[None]
        canvas = torch.cat([pixels, torch.full_like(pixels, -1.0)], dim=-1)
        encoded = pipeline.vae.encode(canvas).latent_dist.mode()
        config = pipeline.vae.config
        control = tokens.pack((encoded - config.shift_factor) * config.scaling_factor)
        size = {"height": SIDE, "width": 2 * SIDE, "max_sequence_length": TEXT_LENGTH}
        latents: Tensor = pipeline("a hat", control_image=control, **CALL, **size).images
        return latents

    def export_again(self, source: str, variant: str) -> Tensor:
        out = self.root / f"again-{source.replace(', ', '-').replace(' ', '-')}-{variant}"
        export_layout(self.folders[source], out, "official", ema=variant != "last")
        return latents_of(TwoFramePipeline.load(self.base, out, device="cpu"))


CONSUMERS: dict[str, tuple[str, tuple[str, ...]]] = {
    "`generate.py`": ("generate", VARIANTS),
    "Python": ("from_python", VARIANTS),
    "`evaluate.py`": ("evaluate", ("EMA",)),
    "`init_from`": ("init_from", ("EMA",)),
    "stock diffusers": ("stock", ("EMA",)),
    "export again": ("export_again", ("EMA", "last")),
}
WITHOUT_LAST = ("adapter", "official", "saved pipeline", "diffusers")
"""Sources that hold one set of weights alone."""


@pytest.fixture(scope="module")
def setting(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Setting:
    return Setting(tmp_path_factory.mktemp("sources"), tiny_base)


def cell(setting: Setting, source: str, consumer: str) -> str:
    """Return "exact", or "refused: REASON" where all variants are refused; anything else fails."""
    name, variants = CONSUMERS[consumer]
    consume: Callable[[str, str], Tensor] = getattr(setting, name)
    outcomes = set()
    for variant in variants:
        if source in WITHOUT_LAST and variant == "last":
            continue
        if source == "saved pipeline" and name == "from_python" and variant != "EMA":
            continue
        try:
            latents = consume(source, variant)
        except Exception as error:
            if message_for_user(error) is None and name != "stock":  # stock diffusers words its own refusals
                raise
            outcomes.add("refused")
            continue
        difference = float((latents - setting.expected[source, variant]).abs().max())
        assert difference <= CLOSE, f"{source} x {consumer} x {variant}: {difference}"
        outcomes.add("exact")
    assert len(outcomes) == 1, (source, consumer, outcomes)
    return outcomes.pop()


TABLE = re.search(
    r"^\| source \|.*\n\|[-|]+\|\n((?:\|.*\n)+)", (CONF.parent / "docs" / "export.md").read_text(), re.MULTILINE
)


def documented() -> dict[str, list[str]]:
    assert TABLE is not None
    rows = [[each.strip() for each in row.strip("|").split("|")] for row in TABLE[1].splitlines()]
    return {row[0]: row[1:] for row in rows}


@pytest.mark.long
@pytest.mark.parametrize("source", SOURCES)
@torch.no_grad()
def test_no_cell_is_silently_wrong(source: str, setting: Setting) -> None:
    cells = [cell(setting, source, consumer) for consumer in CONSUMERS]
    assert documented()[source] == cells
