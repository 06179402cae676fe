"""Has a VLM judge how well shots follow their script, by ViStoryBench's dimensions: setting, action, camera.

As published there is one turn: the rubric, the dimension's part of the script, and the image as a square JPEG. The action of
a single character is judged on its cut-out, with the rubric as the system's turn, at low detail. A question whose reply states
no score is a failure of its kind, and not the published 0.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from PIL import Image

from dsd_lightning.agents import Agent, Message, Request, Sampling
from dsd_lightning.evaluation.errors import EvaluationError
from dsd_lightning.evaluation.judging.judgements import MEASURES, Judgement, Record
from dsd_lightning.evaluation.judging.protocol import REPEATS_AT_MOST, Protocol, encoded
from dsd_lightning.evaluation.judging.rubrics import Rubric
from dsd_lightning.evaluation.judging.run import Judging
from dsd_lightning.evaluation.samples.benchmark import Case, Prompt, Subject
from dsd_lightning.evaluation.samples.result_folder import Samples
from dsd_lightning.evaluation.stories.dataset import StoryBenchmark
from dsd_lightning.files.atomic import replacing
from dsd_lightning.files.text import read_text

DIMENSIONS = ("scene", "character_action", "camera")
"""Setting, the characters' action, and the shot's distance and angle."""

SINGLE = "single_character_action"
"""The action of one character, on its cut-out."""

_SHIPPED = Path(__file__).parent / "rubrics"
_PUBLISHED = {
    "scene": "user_prompt_environment_text_align",
    "character_action": "user_prompt_character_text_align",
    "camera": "user_prompt_camera_text_align",
    SINGLE: "user_prompt_single_character_text_align",
}
"""Names of the rubrics in the benchmark's own code."""


def dimensions_of(measures: Sequence[str]) -> tuple[str, ...]:
    """Return the dimensions that `protocol.measures` names; all of them for the measures of single images, `protocol=ours`.

    Raises:
        EvaluationError: others.
    """
    if tuple(measures) == MEASURES:
        return DIMENSIONS
    if not measures or (unknown := [name for name in measures if name not in DIMENSIONS]):
        raise EvaluationError(
            f"protocol.measures=[{','.join(measures)}]: shots of stories are judged by {', '.join(DIMENSIONS)}"
            + (f"; {unknown[0]!r} is none of them" if measures else "")
        )
    return tuple(name for name in DIMENSIONS if name in measures)


@dataclass(frozen=True)
class AlignmentRubrics:
    """A rubric for each dimension, in the place of `judging.rubrics.Rubrics`."""

    by_dimension: dict[str, Rubric]

    @classmethod
    def read(cls, folder: str | Path | None, dimensions: Sequence[str] = DIMENSIONS) -> AlignmentRubrics:
        """Read the rubrics.

        Args:
            folder: of files named by dimension, or as the benchmark's own code names them; None takes the shipped ones.
            dimensions: of `DIMENSIONS` and `SINGLE`.

        Raises:
            EvaluationError: a file is missing.
        """
        root = _SHIPPED if folder is None else Path(folder)
        rubrics = {}
        for dimension in dimensions:
            files = [root / f"{name}.txt" for name in (dimension, _PUBLISHED[dimension])]
            file = next((each for each in files if each.is_file()), None)
            if file is None:
                raise EvaluationError(f"story.rubrics={folder}: {files[0].name} or {files[1].name} is missing")
            text = read_text(file)
            # Others' files are sent to the last blank line, as their code does.
            rubrics[dimension] = Rubric(dimension, text.strip() if folder is None else text, "")
        return cls(rubrics)

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
        protocol: how images are sent; of its measures, those of `measures` are judged.
        record: of the judgements.
        retry: failures that are asked again.
        benchmark: whose script the shots follow.
    """

    measures: tuple[str, ...] = DIMENSIONS

    def __init__(
        self,
        agent: Agent,
        rubrics: AlignmentRubrics,
        protocol: Protocol,
        record: Record,
        retry: Sequence[str],
        benchmark: StoryBenchmark,
    ) -> None:
        chosen = [name for name in self.measures if name in protocol.measures] or self.measures
        super().__init__(agent, rubrics, replace(protocol, measures=tuple(chosen)), record, retry)
        self._shots = {(story.name, shot.index): (story, shot) for story in benchmark.stories for shot in story.shots}

    def text_of(self, case: Case, measure: str) -> str:
        """Return the part of the script that a dimension is about."""
        _, shot = self._shots[case.subject.name, case.prompt.index]
        return dict(zip(DIMENSIONS, (shot.scene, shot.action, shot.camera), strict=True))[measure]

    def request(self, question: Judgement, image: Path, reference: Path) -> Request:
        """Return one question: a single turn, without the reference."""
        rubric = self.rubrics.by_hash(question.rubric)
        sent = encoded(image, self.protocol.image_side, self.protocol.jpeg_quality)
        turn = Message.user(rubric.text, question.text, sent)
        return Request((turn,), self.sampling, question.repeat + REPEATS_AT_MOST * question.retry)


class Cutouts(Samples):
    """One method's cut-outs of characters, written as `STORY/shot_INDEX-KEY.png`.

    Args:
        folder: to write to.
        method: name in records.
        benchmark: whose stories they are of.
    """

    def __init__(self, folder: str | Path, method: str, benchmark: StoryBenchmark) -> None:
        super().__init__(folder, method)
        self._stories = {story.name: story for story in benchmark.stories}
        self.cases: list[Case] = []
        """Of the characters that were found; `copy` is the character's place in the list of those on stage."""

    def image(self, case: Case) -> Path | None:
        """Return the file of a cut-out."""
        shot = next(each for each in self._stories[case.subject.name].shots if each.index == case.prompt.index)
        return self._file(case.subject.name, shot.index, shot.on_stage[case.copy])

    def add(self, story: str, cutouts: Mapping[int, Mapping[str, Image.Image]]) -> None:
        """Write the cut-outs of a story, by number of the shot and key of the character."""
        whole = self._stories[story]
        for shot in whole.shots:
            for key, image in cutouts.get(shot.index, {}).items():
                with replacing(self._file(story, shot.index, key)) as temporary:
                    image.convert("RGB").save(temporary, "PNG")
                prompt = Prompt(shot.index, shot.action, "character")
                subject = Subject(story, whole.kind, whole.characters[key].references[0], (prompt,))
                self.cases.append(Case(subject, prompt, shot.on_stage.index(key)))

    def _file(self, story: str, index: int, key: str) -> Path:
        return self.folder / story / f"shot_{index:02d}-{key}.png"


class SingleActionJudging(AlignmentJudging):
    """Judges the action of single characters on the cut-outs of `Cutouts`; arguments as for `AlignmentJudging`."""

    measures = (SINGLE,)

    @property
    def sampling(self) -> Sampling:
        """Return the protocol's parameters; cut-outs are small, and sent at low detail as published."""
        return replace(super().sampling, image_detail="low")

    def text_of(self, case: Case, measure: str) -> str:
        """Return the action of a shot and the character's name."""
        return "\n".join(self._words(case.subject.name, case.prompt.index, case.copy))

    def request(self, question: Judgement, image: Path, reference: Path) -> Request:
        """Return one question: the rubric as the system's turn, then action, name and cut-out."""
        rubric = self.rubrics.by_hash(question.rubric)
        sent = encoded(image, self.protocol.image_side, self.protocol.jpeg_quality)
        words = self._words(question.subject, question.prompt, question.copy)
        turns = Message.system(rubric.text), Message.user(*words, sent)
        return Request(turns, self.sampling, question.repeat + REPEATS_AT_MOST * question.retry)

    def _words(self, name: str, index: int, place: int) -> tuple[str, str]:
        """Return the action of a shot and the name of the character at a place in the list of those on stage."""
        story, shot = self._shots[name, index]
        return shot.action, f"Evaluated Character Name is {story.characters[shot.on_stage[place]].name}"
