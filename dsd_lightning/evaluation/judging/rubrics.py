"""Reads the judge's rubrics from text files, by measure and category; every score records the hash of its rubric.

A folder holds, for each rubric, `NAME.txt` (the first turn) and `NAME.acknowledgement.txt` (the turn that the judge is
assumed to have answered). The shipped ones follow DreamBench++'s criteria and, debiased, the paper's (supplement B), in our
own words; style subjects have rubrics of their own, which the paper leaves out. The originals can be used verbatim: the
folder of prompts in a checkout of DreamBench++ is read under the names that they have there.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

from dsd_lightning.evaluation.errors import EvaluationError
from dsd_lightning.evaluation.judging.judgements import MEASURES
from dsd_lightning.evaluation.samples.benchmark import STYLE, Case
from dsd_lightning.files.text import read_text

SHIPPED = Path(__file__).parent / "rubrics"

_NAMES = {
    "cp": "concept_preservation",
    "pf": "prompt_following",
    "debiased_cp": "debiased_concept_preservation",
    "debiased_pf": "debiased_prompt_following",
}


_CHECKOUT_NAMES = {
    "concept_preservation": "subject_full",
    "concept_preservation_style": "style_full",
    "prompt_following": "text_full",
}
"""DreamBench++'s: user_prompt_NAME.txt and gpt_prompt_NAME.txt."""


@dataclass(frozen=True)
class Rubric:
    """The first turn of a conversation, and the acknowledgement that the judge is assumed to have answered."""

    name: str
    text: str
    acknowledgement: str

    @property
    def sha256(self) -> str:
        """Return the hash of both texts."""
        return hashlib.sha256(f"{self.text}\x1f{self.acknowledgement}".encode()).hexdigest()


@runtime_checkable
class RubricSource(Protocol):
    """Rubrics by measure."""

    def of(self, measure: str, case: Case) -> Rubric:
        """Return the rubric for a measure of a case."""
        ...

    def by_hash(self, sha256: str) -> Rubric:
        """Return the rubric with this hash."""
        ...


class Rubrics:
    """The rubrics of a folder.

    Args:
        folder: of text files; None takes the shipped ones.
        measures: for which rubrics are needed.

    Raises:
        EvaluationError: an unknown measure, or a file that is missing or empty.
    """

    def __init__(self, folder: str | Path | None = None, measures: tuple[str, ...] = MEASURES) -> None:
        root = SHIPPED if folder is None else Path(folder)
        if unknown := [name for name in measures if name not in _NAMES]:
            raise EvaluationError(
                f"measures={list(measures)}: {unknown[0]!r} is unknown; choose of {', '.join(_NAMES)}"
            )
        self._rubrics: dict[tuple[str, bool], Rubric] = {}
        for measure in measures:
            for style in (False, True) if measure.endswith("cp") else (False,):
                name = _NAMES[measure] + ("_style" if style else "")
                texts = [_text(file) for file in _files(root, name)]
                self._rubrics[measure, style] = Rubric(name, *texts)

    def of(self, measure: str, case: Case) -> Rubric:
        """Return the rubric for a measure of a case: style subjects have their own for concept preservation."""
        return self._rubrics[measure, measure.endswith("cp") and case.subject.category == STYLE]

    def by_hash(self, sha256: str) -> Rubric:
        """Return the rubric with this hash."""
        return next(rubric for rubric in self._rubrics.values() if rubric.sha256 == sha256)


def _files(root: Path, name: str) -> tuple[Path, Path]:
    original = _CHECKOUT_NAMES.get(name)
    if original is not None and (file := root / f"user_prompt_{original}.txt").is_file():
        return file, root / f"gpt_prompt_{original}.txt"
    return root / f"{name}.txt", root / f"{name}.acknowledgement.txt"


def _text(file: Path) -> str:
    if not file.is_file():
        raise EvaluationError(
            f"the rubric {file} is missing; a folder needs all files of {SHIPPED.name}/, or rubrics=null"
        )
    text = read_text(file).strip()
    if not text:
        raise EvaluationError(f"the rubric {file} is empty")
    return text
