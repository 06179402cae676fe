"""Judges a method's images: every question once, answers recorded as they come, failures by kind."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import fields, replace
from pathlib import Path

from tqdm import tqdm

from dsd_lightning.agents import Agent, AgentFailure, Answer, Message, Refused, Request, RequestRejected, Sampling
from dsd_lightning.cli.console import seconds_between_bars
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
from dsd_lightning.evaluation.judging.protocol import (
    PREFIX,
    REPEATS_AT_MOST,
    Protocol,
    encoded,
    file_sha256,
    payload,
)
from dsd_lightning.evaluation.judging.rubrics import RubricSource
from dsd_lightning.evaluation.samples.benchmark import Case
from dsd_lightning.evaluation.samples.result_folder import Samples
from dsd_lightning.images.pixels import ImageError

log = logging.getLogger(__name__)

REJECTIONS = 3
"""Rejected requests in a row that stop a run: the next ones would be rejected for the same reason."""

_ASKED_AGAIN = ("unparsable", "refused")
"""What `Protocol.attempts` asks again within a run; rejected requests would be rejected again."""


class Judging:
    """Judges methods' images of one benchmark.

    Args:
        agent: the judge.
        rubrics: its first turns.
        protocol: what it is asked.
        record: of the judgements; questions that it answers are not asked again.
        retry: failures that are asked again all the same: words of `judgements.RETRIED`, in a list or with commas.

    Raises:
        EvaluationError: an unknown word in `retry`.
    """

    def __init__(
        self, agent: Agent, rubrics: RubricSource, protocol: Protocol, record: Record, retry: Sequence[str] | str = ()
    ) -> None:
        kinds = retry.split(",") if isinstance(retry, str) else retry
        if unknown := [kind for kind in kinds if kind not in RETRIED]:
            raise EvaluationError(
                f"retry=[{','.join(map(str, kinds))}]: {unknown[0]!r} is unknown; choose of {', '.join(RETRIED)}"
            )
        self.retry = tuple(kinds)
        self.agent = agent
        self.rubrics = rubrics
        self.protocol = protocol
        self.record = record

    @property
    def sampling(self) -> Sampling:
        """Return the judge's sampling parameters, with those of the protocol in their place."""
        settings = {each.name for each in fields(Sampling)}
        if unknown := [name for name in self.protocol.sampling if name not in settings]:
            raise EvaluationError(
                f"protocol.sampling: {unknown[0]!r} is unknown; choose of {', '.join(sorted(settings))}"
            )
        given = {name: value for name, value in self.protocol.sampling.items() if value is not None}
        try:
            return replace(self.agent.sampling, **given)
        except (TypeError, ValueError) as error:
            raise EvaluationError(f"protocol.sampling={given}: {error}") from error

    @property
    def setup(self) -> str:
        """Return what changes an answer beside image, text, rubric and model, as JSON."""
        protocol = self.protocol
        sent = {"image_side": protocol.image_side, "jpeg_quality": protocol.jpeg_quality}
        # Records of before this setting remain what they were.
        prefix = {} if protocol.prompt_prefix == PREFIX else {"prompt_prefix": protocol.prompt_prefix}
        return json.dumps({**sent, **prefix, **self.sampling.described()}, sort_keys=True)

    def text_of(self, case: Case, measure: str) -> str:
        """Return the words that a measure is about."""
        return case.prompt.text

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
                            image=None if image is None else file_sha256(image),
                            reference=file_sha256(case.subject.reference),
                            text=self.text_of(case, measure),
                            rubric=self.rubrics.of(measure, case).sha256,
                            judge=f"{self.agent.provider.identity}/{self.agent.model}",
                            setup=self.setup,
                        ),
                        image,
                        case.subject.reference,
                    )

    def open_questions(
        self, samples: Samples, cases: Sequence[Case], retry: Sequence[str] = (), attempts: int = REPEATS_AT_MOST
    ) -> tuple[list[Judgement], list[tuple[Judgement, Path, Path]]]:
        """Return the judgements that are there already, and the questions that are left.

        Args:
            samples, cases: of which images.
            retry: failures that are left, too: words of `judgements.RETRIED`.
            attempts: how often such a question was asked at least, for it not to be left.
        """
        recorded = self.record.read()
        done, left = [], []
        for question, image, reference in self.questions(samples, cases):
            before = recorded.get(question.question)
            again = before is not None and before.is_kind(retry) and before.retry + 1 < attempts
            if before is not None and before.is_final and not again:
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
        images = encoded(image, side, quality), encoded(reference, side, quality)
        last = payload(question.measure, question.text, *images, self.protocol.prompt_prefix)
        turns = (Message.user(rubric.text), Message.assistant(rubric.acknowledgement), last)
        return Request(turns, self.sampling, question.repeat + REPEATS_AT_MOST * question.retry)

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
            judgements = self._run(samples, cases, self.retry, estimate)
            for attempt in range(1, self.protocol.attempts):
                if not any(each.is_kind(_ASKED_AGAIN) and each.retry < attempt for each in judgements):
                    break
                judgements = self._run(samples, cases, _ASKED_AGAIN, estimate=False, attempts=attempt + 1)
            return judgements

    def _run(
        self,
        samples: Samples,
        cases: Sequence[Case],
        retry: Sequence[str],
        estimate: bool,
        attempts: int = REPEATS_AT_MOST,
    ) -> list[Judgement]:
        done, left = self.open_questions(samples, cases, retry, attempts)
        self.record.plan([*done, *(question for question, _, _ in left)])
        log.info("%s: %d judgements are there, %d to make", samples.method, len(done), len(left))
        if not left:
            return done
        if estimate:
            log.info("%s: %s", samples.method, self.estimate(left))
        judgements: list[Judgement] = []
        spent = 0.0
        with tqdm(
            total=len(done) + len(left),
            initial=len(done),
            desc=f"judging {samples.method}",
            unit="judgement",
            mininterval=seconds_between_bars(),
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
