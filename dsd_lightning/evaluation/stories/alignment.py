"""Has a VLM judge how well shots follow their script, by ViStoryBench's dimensions: setting, action, camera.

As published there is one turn: the rubric, the dimension's part of the script, and the image as a square JPEG. A question
whose reply states no score is a failure of its kind, and not the published 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from dsd_lightning.agents import Agent, Message, Request
from dsd_lightning.evaluation.errors import EvaluationError
from dsd_lightning.evaluation.judging.judgements import Judgement, Record
from dsd_lightning.evaluation.judging.protocol import REPEATS_AT_MOST, Protocol, encoded
from dsd_lightning.evaluation.judging.rubrics import Rubric
from dsd_lightning.evaluation.judging.run import Judging
from dsd_lightning.evaluation.samples.benchmark import Case
from dsd_lightning.evaluation.stories.dataset import StoryBenchmark
from dsd_lightning.files.text import read_text

DIMENSIONS = ("scene", "character_action", "camera")
"""Setting, the characters' action, and the shot's distance and angle."""

_SHIPPED = Path(__file__).parent / "rubrics"
_PUBLISHED = {
    "scene": "user_prompt_environment_text_align",
    "character_action": "user_prompt_character_text_align",
    "camera": "user_prompt_camera_text_align",
}
"""Names of the rubrics in the benchmark's own code."""


@dataclass(frozen=True)
class AlignmentRubrics:
    """A rubric for each dimension, in the place of `judging.rubrics.Rubrics`."""

    by_dimension: dict[str, Rubric]

    @classmethod
    def read(cls, folder: str | Path | None) -> AlignmentRubrics:
        """Read the rubrics.

        Args:
            folder: of files named by dimension, or as the benchmark's own code names them; None takes the shipped ones.

        Raises:
            EvaluationError: a file is missing.
        """
        root = _SHIPPED if folder is None else Path(folder)
        found = {}
        for dimension in DIMENSIONS:
            files = [root / f"{name}.txt" for name in (dimension, _PUBLISHED[dimension])]
            file = next((each for each in files if each.is_file()), None)
            if file is None:
                raise EvaluationError(
                    f"benchmark.alignment_rubrics={folder}: {files[0].name} or {files[1].name} is missing"
                )
            found[dimension] = Rubric(dimension, read_text(file).strip(), "")
        return cls(found)

    def of(self, measure: str, case: Case) -> Rubric:
        """Return the rubric of a dimension."""
        return self.by_dimension[measure]

    def by_hash(self, sha256: str) -> Rubric:
        """Return the rubric with this hash."""
        return next(rubric for rubric in self.by_dimension.values() if rubric.sha256 == sha256)


class AlignmentJudging(Judging):
    """Judges one method's shots.

    Args:
        agent: the judge.
        rubrics: by dimension.
        protocol: how images are sent; its measures are dimensions.
        record: of the judgements.
        retry: failures that are asked again.
        benchmark: whose script the shots follow.
    """

    def __init__(
        self,
        agent: Agent,
        rubrics: AlignmentRubrics,
        protocol: Protocol,
        record: Record,
        retry: Sequence[str],
        benchmark: StoryBenchmark,
    ) -> None:
        super().__init__(agent, rubrics, protocol, record, retry)
        self._script = {
            (story.name, shot.index, dimension): text
            for story in benchmark.stories
            for shot in story.shots
            for dimension, text in zip(DIMENSIONS, (shot.scene, shot.action, shot.camera), strict=True)
        }

    def text_of(self, case: Case, measure: str) -> str:
        """Return the part of the script that a dimension is about."""
        return self._script[case.subject.name, case.prompt.index, measure]

    def request(self, question: Judgement, image: Path, reference: Path) -> Request:
        """Return one question: a single turn, without the reference."""
        rubric = self.rubrics.by_hash(question.rubric)
        sent = encoded(image, self.protocol.image_side, self.protocol.jpeg_quality)
        turn = Message.user(rubric.text, question.text, sent)
        return Request((turn,), self.sampling, question.repeat + REPEATS_AT_MOST * question.retry)
