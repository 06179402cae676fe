"""What stages exchange: records with plain values and images, rejections with a reason, and their cost."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, ClassVar, Protocol, runtime_checkable

from PIL import Image

from dsd_lightning.agents import AgentFailure, Answer, ImagePart

GRID = "grid"
"""Name of a grid's image."""

PANELS = ("panel0", "panel1", "panel2", "panel3")
"""Names of the images that a grid is cropped into, row by row."""

SIDES = ("one", "other")
"""Names of a pair's two images."""

DIRECTIONS = (("one", "other"), ("other", "one"))
"""(reference, target) of the two samples that a pair makes."""


def png(image: Image.Image) -> bytes:
    """Return `image` as a png, without loss; equal pixels give equal bytes."""
    return ImagePart.of(image).data


class DistillationError(ValueError):
    """A run that cannot be started or gone on with as it is asked for; the message says what to do."""


class NothingKept(DistillationError):
    """A stage kept none of its records, so that there is nothing to go on with; the message says why, and what to do."""


@dataclass(frozen=True)
class Record:
    """One item on its way: a caption, then its grid, then a pair of panels.

    Attributes:
        id: unique in its stage; letters, digits and dashes, so that it can name files and shard samples.
        values: its values so far, plain JSON.
        stored: where its images are, `STAGE/MEMBER` by name.
        images: bytes of those images (png) that the stage asked for, or has made.
    """

    id: str
    values: Mapping[str, Any]
    stored: Mapping[str, str] = field(default_factory=dict)
    images: Mapping[str, bytes] = field(default_factory=dict, repr=False, compare=False)

    def having(self, **values: Any) -> Record:
        """Return this record with more values."""
        return replace(self, values={**self.values, **values})

    def line(self, **more: Any) -> bytes:
        """Return the record as a line of JSON, the same bytes for the same record."""
        content = {"id": self.id, "values": dict(self.values), "stored": dict(self.stored), **more}
        return json.dumps(content, sort_keys=True, ensure_ascii=False).encode() + b"\n"


@dataclass(frozen=True)
class Rejection:
    """A record that goes no further, and why: a word to count by, and a sentence to read."""

    record: Record
    reason: str
    detail: str

    @classmethod
    def by_failure(cls, record: Record, failure: AgentFailure) -> Rejection:
        """Return the rejection of a record that a model gave no answer for."""
        return cls(record, failure_reason(type(failure)), str(failure))


def failure_reason(kind: type[AgentFailure]) -> str:
    """Return the word under which failures of this kind are counted: `RateLimited` is `rate_limited`."""
    return "".join(f"_{each.lower()}" if each.isupper() else each for each in kind.__name__).lstrip("_")


PASSING = frozenset(failure_reason(kind) for kind in AgentFailure.__subclasses__() if kind.retryable)
"""Reasons that may pass by another day: the provider failed, not the record."""


@dataclass(frozen=True)
class Usage:
    """What models took for something: calls, tokens and dollars, those of answers that were on disk already included."""

    calls: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    usd: float = 0.0
    unpriced: int = 0
    """Calls of models without a known price."""
    served: tuple[str, ...] = ()
    """Names of the models that answered, as the providers call them."""

    @classmethod
    def of(cls, answers: Iterable[Answer]) -> Usage:
        """Return the sum over `answers`, each counted once."""
        once = {answer.key: answer for answer in answers}.values()
        return cls(
            len(once),
            sum(answer.input_tokens for answer in once),
            sum(answer.output_tokens for answer in once),
            sum(((answer.cost_usd or 0.0) for answer in once), 0.0),
            sum(answer.cost_usd is None for answer in once),
            tuple(sorted({answer.served_model for answer in once})),
        )

    def __add__(self, other: Usage) -> Usage:
        """Return both together."""
        return Usage(
            self.calls + other.calls,
            self.input_tokens + other.input_tokens,
            self.output_tokens + other.output_tokens,
            self.usd + other.usd,
            self.unpriced + other.unpriced,
            tuple(sorted({*self.served, *other.served})),
        )

    @classmethod
    def read(cls, values: Mapping[str, Any]) -> Usage:
        """Return what `as_json` wrote."""
        return cls(**{**values, "served": tuple(values["served"])})

    def as_json(self) -> dict[str, Any]:
        """Return the fields as plain JSON."""
        return {**asdict(self), "served": list(self.served)}


@dataclass(frozen=True)
class Outcome:
    """What a stage made of some records."""

    kept: Sequence[Record]
    rejected: Sequence[Rejection] = ()
    usage: Usage = field(default_factory=Usage)


@runtime_checkable
class Stage(Protocol):
    """A pure function of records: equal records and settings give equal outcomes."""

    name: ClassVar[str]
    looks_at: ClassVar[tuple[str, ...]]
    """Names of the images whose bytes it needs."""

    def settings(self) -> Mapping[str, Any]:
        """Return everything that decides its outcomes, plain JSON; another value makes earlier outcomes stale."""
        ...

    def run(self, records: Sequence[Record]) -> Outcome:
        """Return the outcome of `records`.

        Raises:
            AgentFailure: one that every further record would meet as well (budget, quota, key).
        """
        ...

    def close(self) -> None:
        """Close models and connections."""
        ...
