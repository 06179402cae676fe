"""Draws sheets of images: headed columns, one row a sample, the caption below its row."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from dsd_lightning.files.atomic import replacing

GIVEN, RECONSTRUCTED, GENERATED, TRUTH = "reference", "reconstructed reference", "generated", "truth"
"""Columns of a run's sheets, from left to right."""

FINAL, ROWS = "final", "rows.json"
"""Below a run's `samples/`: the folder of its last samples as single images, and the list of them therein."""

MARGIN, GAP = 14, 8
"""Pixels around the sheet, and between images."""

HEADING_SIZE, CAPTION_SIZE = 14, 12
"""Sizes of the letters, pixels; a heading that is wider than its column is set smaller."""

LINE = 16
"""Height of a line of a caption, pixels."""

MOST_LINES = 2
"""Lines of a caption; longer ones end in an ellipsis."""

LEAST_SIDE = 128
"""Images with a shorter side are magnified by whole numbers, pixel by pixel, until it is as long. Pixels."""

PAPER, INK, FAINT = (255, 255, 255), (24, 24, 27), (95, 99, 108)
"""Colours of the ground, of headings and of captions, sRGB."""


@dataclass(frozen=True)
class Row:
    """One sample: its images by column (a column may be missing), the words below them, and the sample's key."""

    images: Mapping[str, Image.Image]
    caption: str
    key: str = ""


def magnified(image: Image.Image, least_side: int = LEAST_SIDE) -> Image.Image:
    """Return `image` with each pixel repeated a whole number of times, so that its short side is `least_side` or more."""
    factor = -(-least_side // min(image.size))
    if factor <= 1:
        return image
    return image.resize((image.width * factor, image.height * factor), Image.Resampling.NEAREST)


def draw_sheet(columns: Sequence[str], rows: Sequence[Row], title: str = "") -> Image.Image:
    """Return the sheet.

    Args:
        columns: headings, from left to right.
        rows: from top to bottom; images in columns that are not named are left out.
        title: a line above the headings; none if empty.

    Raises:
        ValueError: no columns, or no image at all.
    """
    shown = [{name: magnified(row.images[name]) for name in columns if name in row.images} for row in rows]
    images = [image for row in shown for image in row.values()]
    if not images:
        raise ValueError(f"a sheet of {len(rows)} rows under the columns {list(columns)} has no image to show")
    cell = max(image.width for image in images)
    width = 2 * MARGIN + len(columns) * cell + (len(columns) - 1) * GAP
    heading, small = ImageFont.load_default(HEADING_SIZE), ImageFont.load_default(CAPTION_SIZE)
    captions = [_lines(row.caption, small, width - 2 * MARGIN) for row in rows]
    heights = [max(p.height for p in row.values()) if row else 0 for row in shown]
    top = MARGIN + (HEADING_SIZE + GAP) * (2 if title else 1)
    total = top + sum(heights) + sum(GAP // 2 + LINE * len(lines) + GAP for lines in captions) + MARGIN - GAP

    sheet = Image.new("RGB", (width, total), PAPER)
    pen = ImageDraw.Draw(sheet)
    if title:
        pen.text((MARGIN, MARGIN - 2), title, fill=FAINT, font=heading)
    for index, name in enumerate(columns):
        font = ImageFont.load_default(min(HEADING_SIZE, HEADING_SIZE * cell / heading.getlength(name)))
        pen.text((MARGIN + index * (cell + GAP), top - HEADING_SIZE - GAP - 2), name, fill=INK, font=font)
    y = top
    for row, lines, height in zip(shown, captions, heights, strict=True):
        for index, name in enumerate(columns):
            if name in row:
                sheet.paste(row[name], (MARGIN + index * (cell + GAP), y))
        y += height + GAP // 2
        for line in lines:
            pen.text((MARGIN, y), line, fill=FAINT, font=small)
            y += LINE
        y += GAP
    return sheet


def _lines(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: int) -> list[str]:
    """Return `text` broken between words into at most `MOST_LINES` lines of at most `width` pixels."""
    lines: list[str] = []
    words = text.split()
    while words:
        count = 1
        while count < len(words) and font.getlength(" ".join(words[: count + 1])) <= width:
            count += 1
        lines.append(" ".join(words[:count]))
        words = words[count:]
        if words and len(lines) == MOST_LINES:
            lines[-1] = _shortened(lines[-1] + " " + words[0], font, width)
            break
    return [line if font.getlength(line) <= width else _shortened(line, font, width) for line in lines]


def _shortened(line: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: int) -> str:
    while line and font.getlength(line + " ...") > width:
        line = line[:-1]
    return line.rstrip(" ,") + " ..."


def save_whole(image: Image.Image, path: Path) -> None:
    """Write a PNG atomically."""
    with replacing(path) as temporary:
        image.save(temporary, format="PNG")
