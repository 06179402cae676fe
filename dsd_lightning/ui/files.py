"""How do pictures reach the browser? As files that are written whole, and once.

Gradio itself writes a picture anew for every request, while other visitors may be reading an equal one.
"""

from __future__ import annotations

import hashlib
import io
import os
import tempfile
from pathlib import Path

from gradio.utils import get_upload_folder
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from dsd_lightning.generation.provenance import PROVENANCE


def served(picture: Image.Image | None) -> str | None:
    """Return the PNG file of a picture, with its provenance, in the folder from which Gradio serves; None for None.

    Equal pictures share a file; Gradio removes it a day after it was last asked for.
    """
    if picture is None:
        return None
    information = PngInfo()
    if PROVENANCE in picture.info:
        information.add_text(PROVENANCE, picture.info[PROVENANCE])
    content = io.BytesIO()
    picture.save(content, format="PNG", pnginfo=information)
    path = Path(get_upload_folder()) / hashlib.sha256(content.getvalue()).hexdigest() / "picture.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.utime(path)
    except FileNotFoundError:
        with tempfile.NamedTemporaryFile(dir=path.parent, suffix=".tmp", delete=False) as beside:
            beside.write(content.getvalue())
        os.replace(beside.name, path)
    return str(path)
