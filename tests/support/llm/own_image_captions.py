"""Stands in for a vision-language model that captions one's own images: it knows the drawings of `assets/own_images`.

PYTHONPATH=tests python -m rehearsal_server --script support.llm.own_image_captions:answer
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
from functools import cache

from PIL import Image
from rehearsal_server.script import Asked

from support.commands import ROOT

DRAWINGS = ROOT / "assets" / "own_images"


def answer(asked: Asked) -> str:
    """Answer as `packing/caption_prompt.txt` asks: with the drawing's own caption, and an instruction of its words."""
    caption = _captions()[_digest(asked.images[0])]
    return json.dumps({"caption": caption, "instruction": f"show {caption}"})


@cache
def _captions() -> dict[str, str]:
    """Return the caption of each drawing, by its pixels: what is sent is another file of the same image."""
    with (DRAWINGS / "captions.csv").open(newline="") as table:
        return {_digest((DRAWINGS / row["image"]).read_bytes()): row["caption"] for row in csv.DictReader(table)}


def _digest(file: bytes) -> str:
    with Image.open(io.BytesIO(file)) as image:
        return hashlib.sha256(image.convert("RGB").tobytes()).hexdigest()
