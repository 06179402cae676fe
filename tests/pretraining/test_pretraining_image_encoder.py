"""The image encoder's training images show what their labels say, and the command that makes it runs and repeats itself."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf
from support.commands import ROOT, run

from dsd_lightning.flux.image_encoder import load_image_encoder
from dsd_lightning.miniature.renderer import render
from dsd_lightning.miniature.world import Context, Identity, Scene
from dsd_lightning.pretraining.image_encoder import (
    ATTRIBUTES,
    IGNORED,
    SEEN_IN_DEPTH,
    ImageBatches,
    draw_images,
    main,
)
from dsd_lightning.randomness import numpy_generator


@pytest.mark.parametrize("held_out", [False, True])
def test_labels_are_those_of_the_image(held_out: bool) -> None:
    drawn = draw_images(numpy_generator("labels"), 12, held_out=held_out)
    count = len(Identity.vocabulary)
    for pixels, labels in zip(drawn.pixels, drawn.labels.tolist(), strict=True):
        identity = Identity(*labels[:count])
        assert identity.held_out == held_out
        image = render(Scene(identity, Context(*labels[count:]))).image
        assert torch.equal(pixels, torch.from_numpy(image).permute(2, 0, 1) * 2 - 1)


def test_a_depth_map_is_asked_for_its_form_alone() -> None:
    drawn = draw_images(numpy_generator("depth"), 12, depth_share=1.0)
    assert torch.equal(drawn.pixels[:, 0], drawn.pixels[:, 1])
    for name, labels in zip(ATTRIBUTES, drawn.labels.T, strict=True):
        assert bool((labels == IGNORED).all()) == (name not in SEEN_IN_DEPTH)


def test_a_batch_depends_on_its_step_alone() -> None:
    batches = ImageBatches(steps=3, count=2, depth_share=0.5, seed=0)
    later = batches[2]
    for step in range(3):
        batches[step]
    assert torch.equal(batches[2].pixels, later.pixels)
    assert not torch.equal(batches[1].pixels, later.pixels)
    assert not torch.equal(ImageBatches(3, 2, 0.5, seed=1)[2].pixels, later.pixels)


@pytest.mark.long
def test_the_command_writes_an_encoder_and_repeats_itself(tmp_path: Path) -> None:
    weights = []
    for name in ("first", "second"):
        few = ["steps=2", "batch_size=4", "measured_images=4", "workers=0"]
        few += [f"output={tmp_path / name}", f"work_dir={tmp_path / 'work' / name}"]
        if name == "first":
            assert run(*few, module=("-m", "dsd_lightning.pretraining.image_encoder")).returncode == 0
        else:
            main(
                OmegaConf.merge(
                    OmegaConf.load(ROOT / "conf" / "pretraining" / "image_encoder.yaml"), OmegaConf.from_dotlist(few)
                )
            )
        weights.append((tmp_path / name / "model.safetensors").read_bytes())
    assert weights[0] == weights[1]
    encoder = load_image_encoder(str(tmp_path / "first"))
    assert encoder.pooled(torch.zeros(1, 3, 64, 64)).shape == (1, encoder.pooled_width)
    metrics = json.loads((tmp_path / "first" / "metrics.json").read_text())
    assert set(metrics["held_out"]) == set(metrics["training"]) == {"pooled", "patches"}
    assert set(metrics["held_out"]["pooled"]) == set(ATTRIBUTES)
