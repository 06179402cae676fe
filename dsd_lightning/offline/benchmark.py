"""Writes a benchmark of miniature characters: a folder in DreamBench++'s layout, of held-out identities.

As in DreamBench++ there are 150 subjects (45, 20, 65 and 20 by category) with nine prompts each: four of plain contexts, three
that ask for a style, two under unusual light. Every prompt asks for another pose than the reference's, so that an image that
repeats the reference's pixels is wrong. Categories are names only, but for style: there the colours and the pattern are the
concept.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image

from dsd_lightning.evaluation.errors import EvaluationError
from dsd_lightning.evaluation.samples.benchmark import DREAMBENCHPP_KINDS, STYLE, Benchmark, dreambenchpp
from dsd_lightning.evaluation.samples.result_folder import save_jpeg
from dsd_lightning.evaluation.scores.aggregate import SUBJECTS_OF
from dsd_lightning.files.atomic import write_json, write_text
from dsd_lightning.files.text import read_text
from dsd_lightning.miniature.captions import target_caption
from dsd_lightning.miniature.renderer import render
from dsd_lightning.miniature.world import (
    LIGHT_COLORS,
    LIGHT_DIRECTIONS,
    STYLES,
    Context,
    Draw,
    Identity,
    Scene,
    draw_context,
    draw_identity,
)
from dsd_lightning.randomness import numpy_generator

_FOLDERS = {"animal": "live_subject/animal", "human": "live_subject/human", "object": "object", "style": "style"}
_DONE = "miniature.json"
"""Written last, so that a folder that has it is complete."""


def write(folder: str | Path, seed: int = 0) -> Path:
    """Write the benchmark, unless it is there, and return its folder.

    Raises:
        EvaluationError: the folder holds the benchmark of another seed.
    """
    root = Path(folder)
    mark = root / _DONE
    settings = {"seed": seed, "subjects": SUBJECTS_OF}
    if mark.is_file():
        if json.loads(read_text(mark)) != settings:
            raise EvaluationError(f"{root} holds the benchmark of other settings ({mark}); give another folder")
        return root
    taken: set[Identity] = set()
    for category, count in SUBJECTS_OF.items():
        for number in range(count):
            rng = numpy_generator("evaluation", "miniature", seed, category, number)
            identity = draw_identity(rng, held_out=True)
            while identity in taken:
                identity = draw_identity(rng, held_out=True)
            taken.add(identity)
            _write_subject(root, category, number, identity, rng)
    write_json(mark, settings)
    return root


def miniature(folder: str | Path, seed: int = 0, subjects: int | None = None) -> Benchmark:
    """Return the benchmark of miniature characters, written to `folder` if it is not there yet.

    Args:
        folder: where it is, or will be written.
        seed: of its characters and contexts.
        subjects: how many of its 150 to take, from all categories in their proportions; None takes all.
    """
    benchmark = dreambenchpp(write(folder, seed))
    return Benchmark("Miniature", benchmark.subjects).limited(subjects)


def _write_subject(root: Path, category: str, number: int, identity: Identity, rng: Draw) -> None:
    place = f"{_FOLDERS[category]}/{number:02d}"
    context = _plain(draw_context(rng))
    lines = [f"{identity.word('color')} {identity.word('shape')}"]
    contexts = [_requested(kind, category, context, rng) for kind in DREAMBENCHPP_KINDS]
    lines += [target_caption(each, rng) for each in contexts]
    image = np.round(render(Scene(identity, context)).image * 255).astype(np.uint8)
    save_jpeg(Image.fromarray(image), root / "images" / f"{place}.jpg")
    write_text(root / "captions" / f"{place}.txt", "\n".join(lines) + "\n")


def _plain(context: Context) -> Context:
    return replace(context, light_direction=0, light_color=0, style=0)


def _requested(kind: str, category: str, reference: Context, rng: Draw) -> Context:
    """Return what a prompt of a kind asks for: never the reference's pose."""
    while True:
        context = _plain(draw_context(rng))
        if kind == STYLE and category != STYLE:
            context = replace(context, style=1 + _below(len(STYLES) - 1, rng))
        if kind == "imaginative":
            context = replace(
                context,
                light_direction=1 + _below(len(LIGHT_DIRECTIONS) - 1, rng),
                light_color=1 + _below(len(LIGHT_COLORS) - 1, rng),
            )
        if _pose(context) != _pose(reference):
            return context


def _below(count: int, rng: Draw) -> int:
    return int(rng.integers(0, count))


def _pose(context: Context) -> Sequence[int]:
    return context.place, context.size, context.rotation
