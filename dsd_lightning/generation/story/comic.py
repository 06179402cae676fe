"""Lays out a comic page: bordered panels in rows, read from left to right, a caption below each."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont

from dsd_lightning.images.sheet import magnified

PAPER, INK, FRAME = (253, 251, 246), (24, 24, 27), (24, 24, 27)
"""Colours of the background, of letters and of borders, sRGB."""

LEAST_SIDE, MOST_SIDE = 256, 512
"""Panels with a shorter side are magnified pixel by pixel; those with a longer one are scaled down. Pixels."""

MARGIN, GUTTER, BORDER = 40, 28, 3
"""Pixels around the page, between panels, and of a border."""

TITLE_SIZE, LETTER_SIZE, LINE = 30, 17, 23
"""Sizes of letters, and the height of a line, pixels, on panels of 256; scaled up for larger panels."""


def comic_page(panels: Sequence[Image.Image], captions: Sequence[str], title: str = "") -> Image.Image:
    """Return a nearly square page; a last row that is not full is centred.

    Args:
        panels: in reading order, all of one size.
        captions: one a panel, "" for none; broken between words, never cut off.
        title: above the panels; none if empty.

    Raises:
        ValueError: no panels, or another number of captions.
    """
    if not panels or len(panels) != len(captions):
        raise ValueError(
            f"{len(panels)} panels and {len(captions)} captions: a page needs as many of both, at least one"
        )
    shown = [_sized(panel) for panel in panels]
    width, height = shown[0].size
    scale = width / LEAST_SIDE
    font, heading = ImageFont.load_default(LETTER_SIZE * scale), ImageFont.load_default(TITLE_SIZE * scale)
    line, gutter = round(LINE * scale), round(GUTTER * scale)
    columns = math.ceil(math.sqrt(len(shown)))
    words = [_lines(caption, font, width) for caption in captions]
    rows = [range(first, min(first + columns, len(shown))) for first in range(0, len(shown), columns)]
    inner = columns * width + (columns - 1) * gutter
    titles = _lines(title, heading, inner)
    deepest = [max(len(words[index]) for index in row) for row in rows]
    top = MARGIN + round(len(titles) * TITLE_SIZE * 1.25 * scale) + (gutter if titles else 0)
    total = top + sum(height + gutter // 2 + line * lines for lines in deepest) + gutter * (len(rows) - 1) + MARGIN

    page = Image.new("RGB", (inner + 2 * MARGIN, total), PAPER)
    pen = ImageDraw.Draw(page)
    for index, text in enumerate(titles):
        at = (page.width / 2, MARGIN + index * TITLE_SIZE * 1.25 * scale)
        pen.text(at, text, fill=INK, font=heading, anchor="ma")
    y = top
    for row, lines in zip(rows, deepest, strict=True):
        x = MARGIN + (inner - len(row) * width - (len(row) - 1) * gutter) // 2
        for index in row:
            page.paste(shown[index], (x, y))
            pen.rectangle(
                (x - BORDER, y - BORDER, x + width + BORDER - 1, y + height + BORDER - 1), outline=FRAME, width=BORDER
            )
            for number, text in enumerate(words[index]):
                pen.text((x, y + height + gutter // 2 + number * line), text, fill=INK, font=font)
            x += width + gutter
        y += height + gutter // 2 + lines * line + gutter
    return page


def _sized(panel: Image.Image) -> Image.Image:
    panel = magnified(panel.convert("RGB"), LEAST_SIDE)
    if min(panel.size) > MOST_SIDE:
        scale = MOST_SIDE / min(panel.size)
        panel = panel.resize((round(panel.width * scale), round(panel.height * scale)), Image.Resampling.LANCZOS)
    return panel


def _lines(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: int) -> list[str]:
    """Return `text` broken into lines of at most `width` pixels, between words, and within one that is longer."""
    lines: list[str] = []
    for word in text.split():
        if lines and font.getlength(f"{lines[-1]} {word}") <= width:
            lines[-1] += f" {word}"
            continue
        while len(word) > width or font.getlength(word) > width:
            fits = max(
                1,
                bisect_right(
                    range(1, min(len(word), width) + 1), float(width), key=lambda end: font.getlength(word[:end])
                ),
            )
            lines.append(word[:fits])
            word = word[fits:]
        if word:
            lines.append(word)
    return lines
