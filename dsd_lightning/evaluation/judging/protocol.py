"""Judges a method's images: every question once, answers recorded as they come, failures by kind.

The turns are DreamBench++'s: the rubric (user), an acknowledgement (assistant), the payload (user). Concept preservation
shows the reference first and the generated image second, without text. Prompt following shows the prompt and the
generated image; debiased, also the reference, as the second image (paper, supplement B).
"""

from __future__ import annotations

import hashlib
import io
import json
import logging
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cache, lru_cache
from pathlib import Path

from PIL import Image
from tqdm import tqdm

from dsd_lightning.agents import Agent, AgentFailure, Answer, ImagePart, Message, Refused, Request, RequestRejected
from dsd_lightning.evaluation.errors import EvaluationError
from dsd_lightning.evaluation.judging.judgements import (
    API,
    NO_IMAGE,
    PROVIDER_REFUSED,
    REJECTED,
    RETRIED,
    UNREADABLE,
    Judgement,
    Record,
)
from dsd_lightning.evaluation.judging.rubrics import Rubrics
from dsd_lightning.evaluation.samples.benchmark import Case
from dsd_lightning.evaluation.samples.result_folder import Samples
from dsd_lightning.images.pixels import ImageError, load_rgb

log = logging.getLogger(__name__)

ENCODED_IN_MEMORY = 512
"""Images kept in memory as they are sent; the questions about one image follow each other."""

REJECTIONS = 3
"""Rejected requests in a row that stop a run: the next ones would be rejected for the same reason."""

_REPEATS_AT_MOST = 1000
"""Bound of `Protocol.repeats`, so that attempts at repeats and at retries have different numbers."""


@dataclass(frozen=True)
class Protocol:
    """What the judge is asked.

    Attributes:
        measures: of `judgements.MEASURES`.
        repeats: how often each question is asked.
        image_side: of the squares that are sent, pixels. DreamBench++: 512.
        jpeg_quality: of these images, 1 to 95.
        answer_tokens: expected length of an answer, for the estimate of what judging costs.
    """

    measures: Sequence[str]
    repeats: int = 1
    image_side: int = 512
    jpeg_quality: int = 90
    answer_tokens: int = 120

    def __post_init__(self) -> None:
        if (
            not self.measures
            or not 1 <= self.repeats <= _REPEATS_AT_MOST
            or self.image_side < 1
            or not 1 <= self.jpeg_quality <= 95
        ):
            raise EvaluationError(
                f"measures={list(self.measures)}, repeats={self.repeats}, image_side={self.image_side}, "
                f"jpeg_quality={self.jpeg_quality}: at least one measure, repeat and pixel, and a quality of 1 to 95"
            )


@lru_cache(maxsize=ENCODED_IN_MEMORY)
def _encoded_once(file: Path, digest: str, side: int, quality: int) -> ImagePart:
    buffer = io.BytesIO()
    load_rgb(file).resize((side, side), Image.Resampling.BICUBIC).save(buffer, "JPEG", quality=quality)
    return ImagePart(buffer.getvalue())


def _encoded(file: Path, side: int, quality: int) -> ImagePart:
    # By its digest, too: a file that was generated again is another image.
    return _encoded_once(file, _sha256(file), side, quality)


@cache
def _digest(file: Path, modified: int, size: int, number: int) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


def _sha256(file: Path) -> str:
    # By size and inode, too: the clock of a file system may not advance between two writes.
    status = file.stat()
    return _digest(file, status.st_mtime_ns, status.st_size, status.st_ino)


def payload(measure: str, text: str, generated: ImagePart, reference: ImagePart) -> Message:
    """Return the last turn: what is judged, in the order that the measure needs."""
    if measure.endswith("cp"):
        return Message.user(reference, generated)
    prompt = f"Text prompt: {text}"
    return Message.user(prompt, generated) if measure == "pf" else Message.user(prompt, generated, reference)


class Judging:
    """Judges methods' images of one benchmark.

    Args:
        agent: the judge.
        rubrics: its first turns.
        protocol: what it is asked.
        record: of the judgements; questions that it answers are not asked again.
        retry: failures that are asked again all the same: words of `judgements.RETRIED`.

    Raises:
        EvaluationError: an unknown word in `retry`.
    """

    def __init__(
        self, agent: Agent, rubrics: Rubrics, protocol: Protocol, record: Record, retry: Sequence[str] = ()
    ) -> None:
        if unknown := [kind for kind in retry if kind not in RETRIED]:
            raise EvaluationError(
                f"retry=[{','.join(retry)}]: {unknown[0]!r} is unknown; choose of {', '.join(RETRIED)}"
            )
        self.retry = tuple(retry)
        self.agent = agent
        self.rubrics = rubrics
        self.protocol = protocol
        self.record = record

    @property
    def setup(self) -> str:
        """Return what changes an answer beside image, text, rubric and model, as JSON."""
        images = {"image_side": self.protocol.image_side, "jpeg_quality": self.protocol.jpeg_quality}
        return json.dumps({**images, **self.agent.sampling.described()}, sort_keys=True)

    def questions(self, samples: Samples, cases: Sequence[Case]) -> Iterator[tuple[Judgement, Path | None, Path]]:
        """Yield every judgement to make, without a score yet, with the files of the image and of the reference."""
        for case in cases:
            image = samples.image(case)
            for measure in self.protocol.measures:
                for repeat in range(self.protocol.repeats):
                    yield (
                        Judgement(
                            method=samples.method,
                            subject=case.subject.name,
                            category=case.subject.category,
                            prompt=case.prompt.index,
                            kind=case.prompt.kind,
                            copy=case.copy,
                            measure=measure,
                            repeat=repeat,
                            image=None if image is None else _sha256(image),
                            reference=_sha256(case.subject.reference),
                            text=case.prompt.text,
                            rubric=self.rubrics.of(measure, case).sha256,
                            judge=f"{self.agent.provider.identity}/{self.agent.model}",
                            setup=self.setup,
                        ),
                        image,
                        case.subject.reference,
                    )

    def open_questions(
        self, samples: Samples, cases: Sequence[Case]
    ) -> tuple[list[Judgement], list[tuple[Judgement, Path, Path]]]:
        """Return the judgements that are there already, and the questions that are left."""
        recorded = self.record.read()
        done, left = [], []
        for question, image, reference in self.questions(samples, cases):
            before = recorded.get(question.question)
            if before is not None and before.is_final and not before.is_kind(self.retry):
                done.append(before)
            elif image is None:
                absent = replace(question, failure=NO_IMAGE, reply="there is no image to judge")
                if before is None:
                    self.record.append(absent)
                done.append(absent)
            else:
                # A reply is in the agents' cache, a rejection is not.
                if before is not None and (before.answer is not None or before.failure == PROVIDER_REFUSED):
                    question = replace(question, retry=before.retry + 1)
                left.append((question, image, reference))
        return done, left

    def request(self, question: Judgement, image: Path, reference: Path) -> Request:
        """Return one question's conversation."""
        side, quality = self.protocol.image_side, self.protocol.jpeg_quality
        rubric = self.rubrics.by_hash(question.rubric)
        images = _encoded(image, side, quality), _encoded(reference, side, quality)
        last = payload(question.measure, question.text, *images)
        turns = (Message.user(rubric.text), Message.assistant(rubric.acknowledgement), last)
        return Request(turns, attempt=question.repeat + _REPEATS_AT_MOST * question.retry)

    def estimate(self, left: Sequence[tuple[Judgement, Path, Path]]) -> str:
        """Return the calls, tokens and cost of the open questions, for people."""
        return str(self.agent.dry_run(self._readable(left), answer_tokens=self.protocol.answer_tokens))

    def _readable(self, left: Sequence[tuple[Judgement, Path, Path]]) -> Iterator[Request]:
        for question in left:
            with suppress(ImageError):
                yield self.request(*question)

    def run(self, samples: Samples, cases: Sequence[Case], estimate: bool = True) -> list[Judgement]:
        """Judge a method; return all judgements, those of earlier runs among them.

        Args:
            samples: the method's images.
            cases: of the benchmark.
            estimate: whether to log first what it will cost.

        Raises:
            AgentFailure: one that would meet every further question (budget, quota, key, rejections in a row). Earlier
                answers are recorded; the same command resumes.
        """
        with self.record:
            return self._run(samples, cases, estimate)

    def _run(self, samples: Samples, cases: Sequence[Case], estimate: bool) -> list[Judgement]:
        done, left = self.open_questions(samples, cases)
        self.record.plan(len(done) + len(left))
        log.info("%s: %d judgements are there, %d to make", samples.method, len(done), len(left))
        if not left:
            return done
        if estimate:
            log.info("%s: %s", samples.method, self.estimate(left))
        judgements: list[Judgement] = []
        spent = 0.0
        with tqdm(
            total=len(done) + len(left), initial=len(done), desc=f"judging {samples.method}", unit="judgement"
        ) as bar:
            requested: list[Judgement] = []
            rejected: list[AgentFailure] = []

            def add(judgement: Judgement) -> None:
                judgements.append(judgement)
                self.record.append(judgement)
                bar.update()

            def requests() -> Iterator[Request]:
                for question, image, reference in left:
                    if len(rejected) >= REJECTIONS:
                        return
                    try:
                        request = self.request(question, image, reference)
                    except ImageError as error:
                        add(replace(question, failure=UNREADABLE, reply=str(error)))
                        continue
                    requested.append(question)
                    yield request

            def keep(index: int, result: Answer | AgentFailure) -> None:
                nonlocal spent
                if isinstance(result, AgentFailure) and result.stops_everything:
                    return
                if isinstance(result, Answer) and not result.cached:
                    spent += result.cost_usd or 0.0
                if isinstance(result, RequestRejected):
                    rejected.append(result)
                elif len(rejected) < REJECTIONS:
                    rejected.clear()
                bar.set_postfix_str(f"{spent:.4f} USD", refresh=False)
                add(judged(requested[index], result))

            try:
                self.agent.ask_all(requests(), keep)
            except AgentFailure as failure:
                raise type(failure)(
                    f"judging stopped ({API}:{type(failure).__name__}) with {len(judgements)} of {len(left)} answers: {failure}"
                ) from None
        if len(rejected) >= REJECTIONS and len(judgements) < len(left):
            raise RequestRejected(
                f"judging stopped after {len(rejected)} rejected requests in a row ({REJECTED}), with {len(judgements)} of "
                f"{len(left)} questions asked: {rejected[-1]}\nFix the judge's settings and run the same command with "
                "retry=[rejected]; without it those that were rejected are left out"
            )
        return done + judgements


def judged(question: Judgement, result: Answer | AgentFailure) -> Judgement:
    """Return a question with its outcome."""
    if isinstance(result, AgentFailure):
        kind = PROVIDER_REFUSED if isinstance(result, Refused) else f"{API}:{type(result).__name__}"
        return replace(question, failure=kind, reply=str(result))
    return replace(
        question.with_reply(result.text),
        served=result.served_model,
        input_tokens=result.input_tokens,
        output_tokens=result.output_tokens,
        cost_usd=result.cost_usd,
        answer=result.key,
    )
