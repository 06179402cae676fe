"""Records judgements as JSON Lines, appended as they come, so that a kill loses none that was answered."""

from __future__ import annotations

import hashlib
import json
import threading
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from types import TracebackType
from typing import Any, TextIO

from dsd_lightning.evaluation.errors import EvaluationError
from dsd_lightning.evaluation.judging.replies import Score, parse
from dsd_lightning.files.atomic import write_text

MEASURES = ("cp", "pf", "debiased_cp", "debiased_pf")
"""Concept preservation and prompt following, plain and debiased."""

NO_IMAGE, UNREADABLE, PROVIDER_REFUSED, UNPARSABLE, API = "no_image", "unreadable_image", "refused", "unparsable", "api"
"""Kinds of failures; what follows a colon says more, as in `unparsable:several_scores` or `api:RateLimited`."""

REJECTED = f"{API}:RequestRejected"
PASSING = (f"{API}:RateLimited", f"{API}:ProviderFailed", f"{API}:ConnectionFailed", NO_IMAGE)
"""Failures that are judged again when the command is run again."""

RETRIED = {"rejected": REJECTED, "unparsable": UNPARSABLE, "refused": PROVIDER_REFUSED}
"""Failures that are judged again on request, by the word that requests it."""


@dataclass(frozen=True)
class Judgement:
    """One question to a judge, and its outcome: a score or a failure, never both."""

    method: str
    subject: str
    category: str
    prompt: int
    kind: str
    copy: int
    measure: str
    repeat: int
    image: str | None
    """sha256 of the judged image's file; None where there is none."""
    reference: str | None
    """sha256 of the reference's file."""
    text: str
    """The prompt."""
    rubric: str
    """sha256 of the rubric's text and acknowledgement."""
    judge: str
    """Provider and model of the request."""
    served: str | None = None
    """The model that the provider says has answered."""
    score: int | None = None
    """0 to 4."""
    failure: str | None = None
    reply: str | None = None
    """The judge's text, or the failure's message."""
    input_tokens: int = 0
    output_tokens: int = 0
    cost_usd: float | None = None
    answer: str | None = None
    """Key of the answer in the agents' cache."""
    setup: str = ""
    """How images are sent and answers are sampled."""
    retry: int = 0
    """How often the question was asked before, on request."""

    @property
    def question(self) -> tuple[Any, ...]:
        """Return everything that identifies the question."""
        return (*self.place, self.image, self.reference, self.text, self.rubric, self.judge, self.setup)

    @property
    def provider(self) -> str:
        """Return whose model was asked: the provider's identity, its host and port or the name given to it."""
        return self.judge.partition("/")[0]

    @property
    def digest(self) -> str:
        """Return the hash of the question, short enough for a list of many."""
        return hashlib.sha256(json.dumps(self.question).encode()).hexdigest()[:16]

    @property
    def place(self) -> tuple[Any, ...]:
        """Return what is judged and by which measure, whatever the image, the rubric and the judge are."""
        return (self.method, self.subject, self.prompt, self.copy, self.measure, self.repeat)

    @property
    def is_final(self) -> bool:
        """Return whether judging again would not change it."""
        return self.failure not in PASSING

    def is_kind(self, kinds: Iterable[str]) -> bool:
        """Return whether this failed in one of the kinds, words of `RETRIED`."""
        return self.failure is not None and self.failure.startswith(tuple(RETRIED[kind] for kind in kinds))

    def with_reply(self, reply: str) -> Judgement:
        """Return this judgement with the score that the judge's text states, or why it states none."""
        result = parse(reply)
        if isinstance(result, Score):
            return replace(self, score=result.value, failure=None, reply=reply)
        failure = PROVIDER_REFUSED if result.problem == "refused" else f"{UNPARSABLE}:{result.problem}"
        return replace(self, score=None, failure=failure, reply=reply)


class Record:
    """A file of judgements, a line each; later lines replace earlier ones of the same question.

    Args:
        file: created with its folder when the first judgement is added.
    """

    def __init__(self, file: str | Path) -> None:
        self.file = Path(file)
        self._stream: TextIO | None = None
        self._lock = threading.Lock()

    def read(self) -> dict[tuple[Any, ...], Judgement]:
        """Return all judgements by question; a last line that a kill has cut off is skipped.

        Stored replies are parsed again: a better parser reads more of them.
        """
        judgements: dict[tuple[Any, ...], Judgement] = {}
        if not self.file.exists():
            return judgements
        names = {field.name for field in fields(Judgement)}
        for line in self.file.read_text(encoding="utf-8").splitlines():
            try:
                values = json.loads(line)
                judgement = Judgement(**{name: value for name, value in values.items() if name in names})
            except (ValueError, TypeError):
                continue
            if judgement.answer is not None and judgement.reply is not None:
                judgement = judgement.with_reply(judgement.reply)
            judgements.pop(judgement.question, None)  # so that the order is that of the last lines
            judgements[judgement.question] = judgement
        return judgements

    def latest(self) -> list[Judgement]:
        """Return the judgements of the last command, whatever other settings, images or judges came before.

        Without the list of its questions: the last one of each measure, image and repeat.

        Raises:
            EvaluationError: there are none, or judging was stopped before its end.
        """
        recorded = self.read().values()
        planned = json.loads(self._plan.read_text(encoding="utf-8")) if self._plan.is_file() else 0
        if isinstance(planned, list):
            wanted = set(planned)
            judgements, count = [each for each in recorded if each.digest in wanted], len(wanted)
        else:  # records of before these lists have a number
            judgements, count = list({each.place: each for each in recorded}.values()), planned
        if not judgements or len(judgements) < count:
            raise EvaluationError(
                f"{self.file} holds {len(judgements)} of {count} judgements, too few for a table; run the command that "
                "judged them again: it resumes where it was stopped"
            )
        return judgements

    def plan(self, questions: Iterable[Judgement]) -> None:
        """Write down which judgements there will be, so that no incomplete record is used, and none of other settings."""
        write_text(self._plan, json.dumps([each.digest for each in questions]))

    @property
    def _plan(self) -> Path:
        return self.file.with_suffix(".planned")

    def append(self, judgement: Judgement) -> None:
        """Append a judgement; on return it survives a kill of this process."""
        with self._lock:
            if self._stream is None:
                self.file.parent.mkdir(parents=True, exist_ok=True)
                cut = self.file.exists() and not self.file.read_bytes().endswith(b"\n")
                self._stream = self.file.open("a", encoding="utf-8")
                if cut and self.file.stat().st_size:
                    self._stream.write("\n")  # ends the line that a kill has cut off
            self._stream.write(json.dumps(asdict(judgement), sort_keys=True) + "\n")
            self._stream.flush()

    def __enter__(self) -> Record:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._stream is not None:
            self._stream.close()
            self._stream = None


def failures(judgements: Iterable[Judgement]) -> dict[str, int]:
    """Return how many judgements have no score, by kind, the most frequent first."""
    counts = Counter(judgement.failure for judgement in judgements if judgement.failure is not None)
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))


def remedy(kinds: Iterable[str]) -> str:
    """Return what to do about failures of these kinds, for people: final ones are asked again on request only."""
    present = tuple(kinds)
    words = [word for word, kind in RETRIED.items() if any(each.startswith(kind) for each in present)]
    request = f" with retry=[{','.join(words)}], without which those are final" if words else ""
    return f"fix the cause and run the same command again{request}"
