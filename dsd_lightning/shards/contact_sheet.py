"""Shows a set of shards as one HTML page: images, captions and instructions of its pairs."""

from __future__ import annotations

import base64
import io
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from PIL import Image

from dsd_lightning.files.atomic import write_text
from dsd_lightning.images.pixels import shrink, to_rgb
from dsd_lightning.shards.format import DamagedSample
from dsd_lightning.shards.reader import PairShards

SIDE = 224
"""Greatest short side of an image on the page, pixels."""


def write_contact_sheet(shards: PairShards, out: Path, count: int) -> Path:
    """Write the page and return it; it needs no other file.

    Args:
        shards: the set.
        out: the page's file.
        count: pairs on the page at most, evenly spread over the set.
    """
    step = max(1, -(-len(shards) // count))
    pairs: list[dict[str, Any]] = []
    for position in range(0, len(shards), step):
        try:
            pair = shards[position]
        except DamagedSample as damage:
            pairs.append({"key": damage.key, "images": {}, "caption": damage.reason, "instruction": None})
            continue
        images = {"reference": pair.reference, "target": pair.target, "mask": pair.mask}
        shown = {name: _data_url(image) for name, image in images.items() if image is not None}
        pairs.append({"key": pair.key, "images": shown, "caption": pair.caption, "instruction": pair.instruction})
    templates = Environment(
        loader=PackageLoader("dsd_lightning.shards", "."), autoescape=True, undefined=StrictUndefined
    )
    page = templates.get_template("contact_sheet.html.j2").render(name=str(shards.root), total=len(shards), pairs=pairs)
    write_text(out, page)
    return out


def _data_url(image: Image.Image) -> str:
    file = io.BytesIO()
    shrink(to_rgb(image), SIDE).save(file, "WEBP", quality=85)
    return "data:image/webp;base64," + base64.b64encode(file.getvalue()).decode()
