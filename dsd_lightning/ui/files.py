"""Writes images for the browser, atomically and once.

Gradio itself rewrites an image for every request, while other visitors may be reading an equal one.
"""

from __future__ import annotations

import hashlib
import io
import os
from pathlib import Path

from gradio.utils import get_upload_folder
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from dsd_lightning.files.atomic import write_bytes
from dsd_lightning.generation.provenance import PROVENANCE


def served(image: Image.Image | None) -> str | None:
    """Return the PNG file of an image, with its provenance, in the folder from which Gradio serves; None for None.

    Equal images share a file; Gradio removes it a day after its last use.
    """
    if image is None:
        return None
    information = PngInfo()
    if PROVENANCE in image.info:
        information.add_text(PROVENANCE, image.info[PROVENANCE])
    content = io.BytesIO()
    image.save(content, format="PNG", pnginfo=information)
    path = Path(get_upload_folder()) / hashlib.sha256(content.getvalue()).hexdigest() / "image.png"
    try:
        os.utime(path)
    except FileNotFoundError:
        write_bytes(path, content.getvalue())
    return str(path)
