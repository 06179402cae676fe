"""Stage 4: generates the grids with the teacher."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Protocol, runtime_checkable

from PIL import Image

from dsd_lightning.agents import AgentFailure, Answer
from dsd_lightning.distillation.records import GRID, DistillationError, Outcome, Record, Rejection, Usage, png
from dsd_lightning.images.pixels import ImageError, load_rgb
from dsd_lightning.randomness import key_to_int


@runtime_checkable
class Teacher(Protocol):
    """A text-to-image model, or an API of one."""

    def settings(self) -> Mapping[str, Any]:
        """Return what determines its images, as plain JSON."""
        ...

    def generate(self, prompts: Sequence[str], seeds: Sequence[int]) -> Sequence[Image.Image | Answer | AgentFailure]:
        """Return an image for each prompt, of noise that its seed alone determines.

        An API's teacher returns the answer that holds the image, or why there is none.
        """
        ...

    def licence(self) -> Mapping[str, str]:
        """Return the model's name (`teacher`) and the fields of the licence that binds its images (`license`, ...)."""
        ...

    def close(self) -> None:
        """Free the model's memory."""
        ...


class GenerateGrids:
    """The teacher generates grids of each prompt from several seeds (paper, Section 3.1.1).

    Args:
        teacher: the teacher.
        seeds_per_prompt: grids of each prompt.
        seed: of all of them.
    """

    name: ClassVar[str] = "grids"
    looks_at: ClassVar[tuple[str, ...]] = ()

    def __init__(self, teacher: Teacher, seeds_per_prompt: int, seed: int) -> None:
        if seeds_per_prompt < 1:
            raise DistillationError(f"stages.grids.seeds_per_prompt={seeds_per_prompt}: must be at least 1")
        self.teacher, self.seeds_per_prompt, self.seed = teacher, seeds_per_prompt, seed

    def settings(self) -> Mapping[str, Any]:
        return {"teacher": self.teacher.settings(), "seeds_per_prompt": self.seeds_per_prompt, "seed": self.seed}

    def run(self, records: Sequence[Record]) -> Outcome:
        wanted = [
            Record(
                f"{record.id}-{number}",
                {**record.values, "seed": key_to_int(self.seed, "grids", record.id, number) % 2**32},
                record.stored,
            )
            for record in records
            for number in range(self.seeds_per_prompt)
        ]
        if not wanted:
            return Outcome(())
        grids = self.teacher.generate(
            [record.values["prompt"] for record in wanted], [record.values["seed"] for record in wanted]
        )
        outcomes = [_grid(record, answer) for record, answer in zip(wanted, grids, strict=True)]
        return Outcome(
            [each for each in outcomes if isinstance(each, Record)],
            [each for each in outcomes if isinstance(each, Rejection)],
            Usage.of(answer for answer in grids if isinstance(answer, Answer)),
        )

    def close(self) -> None:
        self.teacher.close()


def _grid(record: Record, answer: Image.Image | Answer | AgentFailure) -> Record | Rejection:
    if isinstance(answer, AgentFailure):
        return Rejection.by_failure(record, answer)
    if isinstance(answer, Answer):
        if answer.image is None:
            return Rejection(record, "no_image", f"{answer.model} answered without an image: {answer.text}")
        try:
            answer = load_rgb(answer.image)
        except ImageError as reason:
            return Rejection(record, "unreadable_image", str(reason))
    return Record(record.id, record.values, record.stored, {GRID: png(answer)})
