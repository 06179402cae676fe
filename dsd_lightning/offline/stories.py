"""Writes stories of miniature characters in ViStoryBench's layout, to try the benchmark without its dataset and models.

python -m dsd_lightning.offline.stories FOLDER --stories 2 --shots 4
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image

from dsd_lightning.evaluation.samples.result_folder import save_jpeg
from dsd_lightning.files.atomic import write_json
from dsd_lightning.miniature.captions import target_caption
from dsd_lightning.miniature.renderer import render
from dsd_lightning.miniature.world import Context, Draw, Identity, Scene, draw_context, draw_identity
from dsd_lightning.randomness import numpy_generator

CHARACTERS, REFERENCES = 2, 2
"""Of a story, and images of each."""


def write(folder: str | Path, stories: int = 2, shots: int = 4, seed: int = 0) -> Path:
    """Write `NN/story.json` and `NN/image/CHARACTER/NN.jpg`, and return the folder.

    Each shot shows one of the two characters of its story; English and Chinese texts are the same.
    """
    root = Path(folder)
    for number in range(1, stories + 1):
        _write_story(root / f"{number:02d}", shots, numpy_generator("evaluation", "stories", seed, number))
    return root


def _write_story(folder: Path, shots: int, rng: Draw) -> None:
    characters = {}
    for name in _names(CHARACTERS):
        identity = draw_identity(rng, held_out=True)
        for number in range(REFERENCES):
            image = _image(identity, _plain(draw_context(rng)))
            save_jpeg(image, folder / "image" / name / f"{number:02d}.jpg")
        looks = f"a {identity.word('color')} {identity.word('shape')}"
        characters[name] = {
            **{f"name_{each}": name for each in ("en", "ch")},
            **{f"prompt_{each}": looks for each in ("en", "ch")},
            "tag": "non_human",
            "num_of_appearances": shots // CHARACTERS,
        }
    write_json(
        folder / "story.json",
        {
            "Story_type": _both("miniature"),
            "Shots": [_shot(number, _names(CHARACTERS)[number % CHARACTERS], rng) for number in range(shots)],
            "Characters": characters,
        },
    )


def _shot(number: int, character: str, rng: Draw) -> dict[str, object]:
    context = _plain(draw_context(rng))
    text = target_caption(context, rng)
    return {
        "index": number + 1,
        "Setting Description": _both(text),
        "Plot Correspondence": _both(f"{character} is seen"),
        "Characters Appearing": {"en": [character], "ch": [character]},
        "Static Shot Description": _both(text),
        "Shot Perspective Design": _both("eye level shot"),
    }


def _names(count: int) -> list[str]:
    return [f"Character {letter}" for letter in "ABCDEFGH"[:count]]


def _both(text: str) -> dict[str, str]:
    return {"en": text, "ch": text}


def _plain(context: Context) -> Context:
    return replace(context, light_direction=0, light_color=0, style=0)


def _image(identity: Identity, context: Context) -> Image.Image:
    return Image.fromarray(np.round(render(Scene(identity, context)).image * 255).astype(np.uint8))


def main() -> None:
    """Write the stories that the command line asks for."""
    parser = argparse.ArgumentParser(prog="python -m dsd_lightning.offline.stories", description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--stories", type=int, default=2)
    parser.add_argument("--shots", type=int, default=4, help="of a story")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    place = write(arguments.folder, arguments.stories, arguments.shots, arguments.seed)
    sys.stdout.write(f"stories  {place}\n")


if __name__ == "__main__":
    main()
