"""Lays a method's images of stories out as ViStoryBench does: `STORY/shots/shot_INDEX.png`.

Read are also `shots/STORY/shot_INDEX.png` and `STORY/shot_INDEX.png`, with any beginning of the name and .jpg. To score the
images with the benchmark's own code, the folder is its `data/outputs/METHOD/MODE/LANGUAGE/TIMESTAMP`.
"""

from __future__ import annotations

import re
from pathlib import Path

from PIL import Image

from dsd_lightning.evaluation.samples.benchmark import Case
from dsd_lightning.evaluation.samples.result_folder import Samples
from dsd_lightning.files.atomic import replacing
from dsd_lightning.files.listing import is_system_file

_ENDINGS = (".png", ".jpg", ".jpeg", ".gif", ".bmp")
_INDEX = re.compile(r"(?:.*_)?(\d+)")


class StoryImages(Samples):
    """One method's folder of images of stories."""

    def image(self, case: Case) -> Path | None:
        """Return the file of a shot, or None if there is none."""
        return self.shots(case.subject.name).get(case.prompt.index)

    def shots(self, story: str) -> dict[int, Path]:
        """Return the images of the story of this name by the numbers of their shots, in their order."""
        for folder in (self.folder / story / "shots", self.folder / "shots" / story, self.folder / story):
            if not folder.is_dir():
                continue
            files = {}
            for file in sorted(folder.iterdir()):
                index = _INDEX.fullmatch(file.stem)
                if file.suffix.lower() in _ENDINGS and index is not None and not is_system_file(file.name):
                    files[int(index[1])] = file
            if files:
                return dict(sorted(files.items()))
        return {}

    def write(self, case: Case, image: Image.Image, reference: Image.Image) -> None:
        """Write a shot, atomically; its prompt and references are in the dataset."""
        file = self.folder / case.subject.name / "shots" / f"shot_{case.prompt.index:02d}.png"
        with replacing(file) as temporary:
            image.convert("RGB").save(temporary, "PNG")
