"""Where do a method's images lie? In DreamBench++'s layout, so that those of any method can be judged.

FOLDER/src_image/SUBJECT/0_0.jpg     the reference as it was given
FOLDER/tgt_image/SUBJECT/0_0.jpg     the image of prompt 0, first copy
FOLDER/text/SUBJECT/0_0.txt          the prompt
"""

from __future__ import annotations

import os
from pathlib import Path

from PIL import Image

from dsd_lightning.evaluation.samples.benchmark import Case, first_image

_SOURCE, _RESULT, _TEXT = "src_image", "tgt_image", "text"


class Samples:
    """One method's folder of images.

    Args:
        folder: `samples/<method>`, of ours or of another method's code.
        method: name in tables; None takes the folder's.
    """

    def __init__(self, folder: str | Path, method: str | None = None) -> None:
        self.folder = Path(folder)
        self.method = method or self.folder.name

    def image(self, case: Case) -> Path | None:
        """Return the file of a case's image, or None where there is none."""
        return first_image(self.folder / _RESULT / case.subject.name / f"{case.prompt.index}_{case.copy}")

    def write(self, case: Case, image: Image.Image, reference: Image.Image) -> None:
        """Write an image with its reference and prompt; the image comes last, and whole or not at all."""
        name = f"{case.prompt.index}_{case.copy}"
        text = self.folder / _TEXT / case.subject.name / f"{name}.txt"
        text.parent.mkdir(parents=True, exist_ok=True)
        text.write_text(case.prompt.text + "\n", encoding="utf-8")
        save_jpeg(reference, self.folder / _SOURCE / case.subject.name / f"{name}.jpg")
        save_jpeg(image, self.folder / _RESULT / case.subject.name / f"{name}.jpg")


def save_jpeg(image: Image.Image, file: Path) -> None:
    """Write a JPEG of high quality, without colour subsampling, beside its place and rename it."""
    file.parent.mkdir(parents=True, exist_ok=True)
    beside = file.with_name(f".{file.name}.{os.getpid()}.partial")
    image.convert("RGB").save(beside, "JPEG", quality=97, subsampling=0)
    beside.replace(file)
