"""Loads prompt templates: text files, shipped beside this module and replaceable by those of a folder."""

from __future__ import annotations

import string
from pathlib import Path

from dsd_lightning.distillation.records import DistillationError

SHIPPED = Path(__file__).parent
SUFFIX = ".txt"


class Prompts:
    """Templates by name, with `$placeholders`.

    Args:
        folder: templates that replace shipped ones of the same name, or add to them (families); None takes the shipped.

    Raises:
        DistillationError: the folder does not exist, or holds no template.
    """

    def __init__(self, folder: str | None = None) -> None:
        self._files = {path.stem: path for path in SHIPPED.glob(f"*{SUFFIX}")}
        if folder is not None:
            own = {path.stem: path for path in Path(folder).glob(f"*{SUFFIX}")}
            if not own:
                raise DistillationError(f"prompts.folder={folder}: no folder with {SUFFIX} files; see {SHIPPED}")
            self._files |= own

    def text(self, name: str) -> str:
        """Return a template as it is written.

        Raises:
            DistillationError: there is no such template.
        """
        if name not in self._files:
            raise DistillationError(
                f"there is no prompt {name}{SUFFIX}; add it to the folder prompts.folder=..., or choose of "
                f"{', '.join(sorted(self._files))}"
            )
        return self._files[name].read_text(encoding="utf-8").strip()

    def fill(self, name: str, **values: str) -> str:
        """Return a template with its placeholders filled in.

        Raises:
            DistillationError: there is no such template, or it has a placeholder that is not given.
        """
        try:
            return string.Template(self.text(name)).substitute(values)
        except (KeyError, ValueError) as error:
            raise DistillationError(
                f"prompt {self._files[name]}: {error}; its placeholders are of {', '.join(f'${each}' for each in values)}"
            ) from error
