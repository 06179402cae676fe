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

MARGIN, GAP, LEADING = 14, 8, 4
"""Pixels around the sheet, between images, and between a line of text and what is below it."""

SMALLEST = 12
"""Size of letters, pixels, below which nothing is set."""

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
    """Return a sheet: the reference, and an image for every image guidance i (a row) and text guidance t (a column).

    Both values stand above each image. Small images are magnified as in `images.sheet`.
    """
    reference, rows = magnified(reference), [[magnified(image) for image in row] for row in rows]
    width, height = rows[0][0].size
    font, line = ImageFont.load_default(heading := heading_size(width)), heading + LEADING
    lead = max(width, 64)
    size = (
        2 * MARGIN + lead + len(text_guidances) * (width + GAP),
        2 * MARGIN - GAP + len(image_guidances) * (line + height + GAP),
    )
    sheet = Image.new("RGB", size, PAPER)
    pen = ImageDraw.Draw(sheet)
    pen.text((MARGIN, MARGIN), "reference", fill=INK, font=font)
    sheet.paste(reference.resize((width, height)), (MARGIN, MARGIN + line))
    for row, (images, by_image) in enumerate(zip(rows, image_guidances, strict=True)):
        top = MARGIN + row * (line + height + GAP)
        for column, (image, by_text) in enumerate(zip(images, text_guidances, strict=True)):
            left = MARGIN + lead + GAP + column * (width + GAP)
            pen.text((left, top), f"i {by_image:g}, t {by_text:g}", fill=INK, font=font)
            sheet.paste(image, (left, top + line))
    return sheet


def heading_size(width: int) -> int:
    """Return the size of the letters above an image of `width` pixels: readable where a phone shows the whole sheet."""
    return max(SMALLEST, width // 8)
