"""Writes images with metadata on how they were generated, and lays out contact sheets of guidances."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageFont
from PIL.PngImagePlugin import PngInfo

from dsd_lightning.files.atomic import replacing
from dsd_lightning.images.sheet import magnified

PROVENANCE = "dsd_lightning"
"""Name of the PNG text chunk that holds, as JSON, how an image was generated; JPEG and WebP hold it as EXIF description."""

FORMATS = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP"}
"""PIL's name of the format of each file ending that images are written in."""

QUALITY = 95
"""Of JPEG, whose colours have the full resolution; WebP is written without loss."""

_OPTIONS: Mapping[str, Mapping[str, Any]] = {
    "PNG": {},
    "JPEG": {"quality": QUALITY, "subsampling": 0},
    "WEBP": {"lossless": True},
}
_DESCRIPTION = 0x010E
"""EXIF's tag ImageDescription."""

MARGIN, GAP, HEADING = 14, 8, 16
"""Pixels around the sheet, between images, and of a line of text."""

PAPER, INK = (255, 255, 255), (24, 24, 27)


def save_image(image: Image.Image, path: Path, provenance: Mapping[str, Any] | None) -> None:
    """Write an image atomically in the format of its ending, one of `FORMATS`, with `provenance` unless it is None."""
    kind = FORMATS[path.suffix.lower()]
    options: dict[str, Any] = dict(_OPTIONS[kind])
    if provenance is not None and kind == "PNG":
        options["pnginfo"] = information = PngInfo()
        information.add_text(PROVENANCE, json.dumps(provenance, sort_keys=True))
    elif provenance is not None:
        options["exif"] = exif = Image.Exif()
        exif[_DESCRIPTION] = json.dumps({PROVENANCE: provenance}, sort_keys=True)
    with replacing(path) as temporary:
        image.save(temporary, format=kind, **options)


def read_provenance(path: Path) -> dict[str, Any] | None:
    """Return what `save_image` wrote about an image, or None."""
    with Image.open(path) as image:
        text = image.info.get(PROVENANCE)
        description = image.getexif().get(_DESCRIPTION)
    if text is not None:
        return dict(json.loads(text))
    if not isinstance(description, str) or not description.startswith(f'{{"{PROVENANCE}"'):
        return None
    return dict(json.loads(description)[PROVENANCE])


def guidance_sheet(
    reference: Image.Image,
    rows: Sequence[Sequence[Image.Image]],
    image_guidances: Sequence[float],
    text_guidances: Sequence[float],
) -> Image.Image:
    """Return a sheet: the reference, and an image for every image guidance (a row) and text guidance (a column).

    Small images are magnified as in `images.sheet`.
    """
    reference, rows = magnified(reference), [[magnified(image) for image in row] for row in rows]
    width, height = rows[0][0].size
    font = ImageFont.load_default(12)
    lead = max(width, 64)
    sheet = Image.new(
        "RGB",
        (
            2 * MARGIN + lead + len(text_guidances) * (width + GAP),
            MARGIN + HEADING + len(image_guidances) * (height + GAP + HEADING) + MARGIN,
        ),
        PAPER,
    )
    pen = ImageDraw.Draw(sheet)
    pen.text((MARGIN, MARGIN), "reference", fill=INK, font=font)
    sheet.paste(reference.resize((width, height)), (MARGIN, MARGIN + HEADING))
    for column, amount in enumerate(text_guidances):
        pen.text((MARGIN + lead + GAP + column * (width + GAP), MARGIN), f"t {amount:g}", fill=INK, font=font)
    for row, (images, amount) in enumerate(zip(rows, image_guidances, strict=True)):
        top = MARGIN + HEADING + row * (height + GAP + HEADING)
        pen.text((MARGIN + lead + GAP, top + height), f"i {amount:g}", fill=INK, font=font)
        for column, image in enumerate(images):
            sheet.paste(image, (MARGIN + lead + GAP + column * (width + GAP), top))
    return sheet
