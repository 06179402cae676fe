"""Writes the page's example images: characters of the miniature world that no model was trained on."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from dsd_lightning.miniature.captions import context_phrases
from dsd_lightning.miniature.renderer import render
from dsd_lightning.miniature.world import Context, Scene, draw_context, draw_identity

EXAMPLES, SEED = 4, 2
"""Number of examples, and the seed that chooses them."""

_PLAIN = Context(
    place=0, size=0, rotation=0, background_kind=0, background_color=0, light_direction=0, light_color=0, style=0
)


def write_examples(folder: Path) -> list[tuple[str, str]]:
    """Write reference images into `folder`; return their files, with a prompt for each."""
    rng = np.random.default_rng(SEED)
    examples = []
    for number in range(EXAMPLES):
        image = render(Scene(draw_identity(rng, held_out=True), _PLAIN)).image
        file = folder / f"character_{number + 1}.png"
        Image.fromarray((image * 255).round().astype(np.uint8)).save(file)
        examples.append((str(file), ", ".join(["this character", *context_phrases(draw_context(rng))])))
    return examples
