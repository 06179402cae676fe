"""A teacher that notes each image it generates, and whose first process is killed by SIGKILL in the middle of its work."""

from __future__ import annotations

import os
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from dsd_lightning.distillation.teacher import DiffusersTeacher

IMAGES_BEFORE = 2
"""Images after which the first process is killed, before it generates another."""


class KilledTeacher(DiffusersTeacher):
    """Generates as any pipeline of diffusers does.

    Args:
        notes: file of notes: the first process's id, then a line for each prompt whose image was generated.
        others: see `DiffusersTeacher`.
    """

    def __init__(self, notes: str, **others: Any) -> None:
        super().__init__(**others)
        self.notes = Path(notes)

    def generate(self, prompts: Sequence[str], seeds: Sequence[int]) -> list[Image.Image]:
        lines = self.notes.read_text().splitlines() if self.notes.exists() else [str(os.getpid())]
        if lines[0] == str(os.getpid()) and len(lines) > IMAGES_BEFORE:
            os.kill(os.getpid(), signal.SIGKILL)
        images = super().generate(prompts, seeds)
        self.notes.write_text("\n".join([*lines, *prompts]) + "\n")
        return images
