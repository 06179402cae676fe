"""Lays a method's images out as DreamBench++ does, so that images of any method can be judged.

FOLDER/src_image/SUBJECT/0_0.jpg     the reference as it was given
FOLDER/tgt_image/SUBJECT/0_0.jpg     the image of prompt 0, first copy
FOLDER/text/SUBJECT/0_0.txt          the prompt
"""

from __future__ import annotations

from pathlib import Path

from PIL import Image

from dsd_lightning.evaluation.samples.benchmark import Case, image_of
from dsd_lightning.files.atomic import replacing, write_text

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
        """Return the file of a case's image, or None if there is none."""
        return image_of(self.folder / _RESULT / case.subject.name / f"{case.prompt.index}_{case.copy}")

    def write(self, case: Case, image: Image.Image, reference: Image.Image) -> None:
        """Write an image with its reference and prompt, each atomically; the image comes last."""
        name = f"{case.prompt.index}_{case.copy}"
        write_text(self.folder / _TEXT / case.subject.name / f"{name}.txt", case.prompt.text + "\n")
        save_jpeg(reference, self.folder / _SOURCE / case.subject.name / f"{name}.jpg")
        save_jpeg(image, self.folder / _RESULT / case.subject.name / f"{name}.jpg")


def save_jpeg(image: Image.Image, file: Path) -> None:
    """Write a JPEG of high quality, without colour subsampling, atomically."""
    with replacing(file) as temporary:
        image.convert("RGB").save(temporary, "JPEG", quality=97, subsampling=0)
