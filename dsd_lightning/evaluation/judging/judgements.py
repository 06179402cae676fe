"""What is recorded of every judgement, and how does the record survive a kill? One JSON line each, appended whole."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from types import TracebackType
from typing import Any, TextIO

from dsd_lightning.evaluation.errors import EvaluationError

MEASURES = ("cp", "pf", "debiased_cp", "debiased_pf")
"""Concept preservation and prompt following, plain and debiased."""

NO_IMAGE, UNREADABLE, PROVIDER_REFUSED, UNPARSABLE, API = (
    "no_image",
    "unreadable_image",
    "refused",
    "unparsable",
    "api",
)
"""Kinds of failures; what follows a colon says more, as in `unparsable:several_scores` or `api:RateLimited`."""

PASSING = ("api:RateLimited", "api:ProviderFailed", "api:ConnectionFailed", NO_IMAGE)
"""Failures that are asked again when the command is run again."""


@dataclass(frozen=True)
class Judgement:
    """One question to a judge, and what came of it: a score or a failure, never both."""

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
    """sha256 of all words of the rubric."""
    judge: str
    """Provider and model as they were asked."""
    served: str | None = None
    """The model that the provider says has answered."""
    score: int | None = None
    """0 to 4."""
    failure: str | None = None
    reply: str | None = None
    """The judge's words, or the failure's message."""
    input_tokens: int = 0
    output_tokens: int = 0
    cost_usd: float | None = None
    answer: str | None = None
    """Key of the answer in the agents' cache."""

    @property
    def question(self) -> tuple[Any, ...]:
        """Return everything that makes this the same question when it comes again."""
        return (
            self.method,
            self.subject,
            self.prompt,
            self.copy,
            self.measure,
            self.repeat,
            self.image,
            self.reference,
            self.text,
            self.rubric,
            self.judge,
        )

    @property
    def place(self) -> tuple[Any, ...]:
        """Return what is judged and by which measure, whatever the image, the rubric and the judge are."""
        return (self.method, self.subject, self.prompt, self.copy, self.measure, self.repeat)

    @property
    def is_final(self) -> bool:
        """Return whether asking again would not change it."""
        return self.failure not in PASSING


class Record:
    """A file of judgements, a line each; later lines replace earlier ones of the same question.

    Args:
        file: made with its folder when the first judgement comes.
    """

    def __init__(self, file: str | Path) -> None:
        self.file = Path(file)
        self._stream: TextIO | None = None
        self._lock = threading.Lock()

    def read(self) -> dict[tuple[Any, ...], Judgement]:
        """Return all judgements by question; a last line that a kill has cut is left out."""
        found: dict[tuple[Any, ...], Judgement] = {}
        if not self.file.exists():
            return found
        names = {field.name for field in fields(Judgement)}
        for line in self.file.read_text(encoding="utf-8").splitlines():
            try:
                values = json.loads(line)
                judgement = Judgement(**{name: value for name, value in values.items() if name in names})
            except (ValueError, TypeError):
                continue
            found.pop(judgement.question, None)  # so that the order is that of the last lines
            found[judgement.question] = judgement
        return found

    def latest(self) -> list[Judgement]:
        """Return the last judgement of each measure, image and repeat, whatever image or judge came before.

        Raises:
            EvaluationError: there are none, or judging was stopped before its end.
        """
        found = {each.place: each for each in self.read().values()}
        planned = json.loads(self._plan.read_text(encoding="utf-8")) if self._plan.is_file() else len(found)
        if not found or len(found) < planned:
            raise EvaluationError(
                f"{self.file} holds {len(found)} of {planned} judgements: no table is made of a part; run the command that "
                "judged them again, which goes on where it was stopped"
            )
        return list(found.values())

    def plan(self, questions: int) -> None:
        """Note how many judgements there will be, so that a part is not taken for the whole."""
        self.file.parent.mkdir(parents=True, exist_ok=True)
        self._plan.write_text(str(questions), encoding="utf-8")

    @property
    def _plan(self) -> Path:
        return self.file.with_suffix(".planned")

    def append(self, judgement: Judgement) -> None:
        """Add a judgement; on return it survives a kill."""
        with self._lock:
            if self._stream is None:
                self.file.parent.mkdir(parents=True, exist_ok=True)
                cut = self.file.exists() and not self.file.read_bytes().endswith(b"\n")
                self._stream = self.file.open("a", encoding="utf-8")
                if cut and self.file.stat().st_size:
                    self._stream.write("\n")  # the line that a kill has cut must not swallow the next one
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
    counted: dict[str, int] = {}
    for each in judgements:
        if each.failure is not None:
            counted[each.failure] = counted.get(each.failure, 0) + 1
    return dict(sorted(counted.items(), key=lambda item: (-item[1], item[0])))
