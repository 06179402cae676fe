"""A teacher is any text-to-image pipeline that diffusers opens, with images that depend on their seeds alone."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from rehearsal_server import RehearsalServer
from support.commands import ROOT, command, environment
from support.distill_runs import CAPTIONS, arguments, captions_file, rule
from support.models.killed_teacher import IMAGES_BEFORE
from support.models.teacher_twins import TWINS, write_twin
from support.processes import prepared

from dsd_lightning.distillation.records import GRID, Record
from dsd_lightning.distillation.stages.grids import GenerateGrids
from dsd_lightning.distillation.store import Store
from dsd_lightning.distillation.teacher import DiffusersTeacher

PROMPTS = ("a red cube", "a red cube", "a cat")


def flux(folder: Path, base: Path) -> Path:
    """Write the tiny base of the tests as a pipeline."""
    folder.mkdir()
    for part in base.iterdir():
        (folder / part.name).symlink_to(part)
    index = ROOT / "assets" / "tiny-flux" / "model_index.json"
    (folder / "model_index.json").write_text(index.read_text())
    return folder


def teacher_of(path: Path, batch_size: int, flux_settings: bool) -> DiffusersTeacher:
    """Return a teacher of 64 pixels and two steps; a family's own defaults unless it is FLUX."""
    settings = {"guidance_scale": 3.5, "max_sequence_length": 16} if flux_settings else {}
    given = {"guidance_scale": None, "max_sequence_length": None, **settings}
    return DiffusersTeacher(
        str(path), 64, 64, num_inference_steps=2, batch_size=batch_size, dtype="float32", device="cpu", **given
    )


@pytest.mark.parametrize("family", ["flux", *TWINS])
def test_images_depend_on_prompt_and_seed_alone(family: str, tiny_base: Path, tmp_path: Path) -> None:
    folder = tmp_path / family
    path = flux(folder, tiny_base) if family == "flux" else write_twin(family, folder, tiny_base)
    several, single = (teacher_of(path, size, family == "flux") for size in (2, 1))
    images = [np.asarray(image, dtype=int) for image in several.generate(PROMPTS, [1, 2, 3])]
    assert images[0].shape == (64, 64, 3)
    assert np.abs(images[0] - images[1]).max() > 8
    (again,) = single.generate(PROMPTS[1:2], [2])
    assert np.abs(np.asarray(again, dtype=int) - images[1]).max() <= 2
    assert "arguments" not in several.settings()
    # One stage of grids, as a run has it.
    outcome = GenerateGrids(single, 1, 0).run([Record("caption-1", {"prompt": "a grid of a cat"})])
    assert not outcome.rejected
    [grid] = outcome.kept
    with Image.open(io.BytesIO(grid.images[GRID])) as image:
        assert image.size == (64, 64)


@pytest.mark.long
@pytest.mark.parametrize("family", ["sdxl", "sd3", "z_image"])
def test_a_killed_stage_of_grids_goes_on_and_generates_and_asks_nothing_twice(
    family: str, tiny_base: Path, tmp_path: Path
) -> None:
    path = write_twin(family, tmp_path / family, tiny_base)
    captions = captions_file(tmp_path, CAPTIONS[:4])
    notes = tmp_path / "notes"
    few = ("until=grids", "partition_size=1", "agents.teacher.num_inference_steps=2", "agents.teacher.device=cpu")
    with RehearsalServer(rule) as server:
        given = arguments(tmp_path / "run", captions, server.url, *few, f"agents.teacher.path={path}")
        given = ["agents/teacher=other" if each == "agents/teacher=tiny" else each for each in given]
        given = [each for each in given if not each.startswith("agents.teacher._target_")]
        given += ["agents.teacher._target_=support.models.killed_teacher.KilledTeacher", "agents.teacher.dtype=float32"]
        given += [f"words.tokenizer={ROOT / 'assets' / 'tiny-flux'}"]
        given.append(f"+agents.teacher.notes={notes}")
        setting = environment(PYTHONPATH=f"{ROOT}:{ROOT / 'tests'}")
        words = command(*given, module=("distill.py",))
        killed = prepared.run(words, env=setting)
        assert killed.returncode == -signal.SIGKILL, killed.stderr
        assert len(notes.read_text().splitlines()) == 1 + IMAGES_BEFORE
        asked = server.counts["asked"]
        resumed = prepared.run(words, env=setting)
        assert resumed.returncode == 0, resumed.stderr
        assert server.counts["asked"] == asked
    generated = notes.read_text().splitlines()[1:]
    assert len(generated) == len(set(generated)) == 4
    assert sum(each.kept for each in Store(tmp_path / "run").manifests("grids")) == 4


def test_the_licence_is_the_models_or_the_configurations(tmp_path: Path) -> None:
    assert teacher_of(tmp_path, 1, False).licence() == {"teacher": tmp_path.name, "license": "unknown"}
    (tmp_path / "README.md").write_text("---\nlicense: openrail++\n---\n")
    assert teacher_of(tmp_path, 1, False).licence()["license"] == "openrail++"
    licence = teacher_of(Path("stabilityai/stable-diffusion-3.5-medium"), 1, False).licence()
    assert licence["license_name"] == "stabilityai-ai-community"
    own = DiffusersTeacher(str(tmp_path), 64, 64, 1, None, None, 1, licence={"license": "mit"})
    assert own.licence() == {"teacher": tmp_path.name, "license": "mit"}


def test_opening_a_pipeline_prints_nothing_on_the_terminal(tiny_base: Path, tmp_path: Path) -> None:
    path = flux(tmp_path / "flux", tiny_base)
    code = (
        "from dsd_lightning.cli.console import tidy; tidy()\n"
        "from dsd_lightning.distillation.teacher import DiffusersTeacher\n"
        f"DiffusersTeacher({str(path)!r}, 64, 64, 1, 3.5, 16, 1, 'float32', 'cpu').generate(['a cat'], [1])"
    )
    setting = {**environment(), "PYTHONPATH": os.pathsep.join([str(ROOT)])}
    process = subprocess.run([sys.executable, "-c", code], env=setting, capture_output=True, text=True, timeout=300)
    assert process.returncode == 0, process.stderr
    assert process.stderr == ""
