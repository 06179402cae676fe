"""Stage 6: keeps pairs of panels that show one and the same subject."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Any, ClassVar

from dsd_lightning.agents import Agent, AgentFailure, Answer, ImagePart, Message, Request
from dsd_lightning.agents.many import for_each
from dsd_lightning.distillation.prompts import Prompts
from dsd_lightning.distillation.records import PANELS, SIDES, DistillationError, Outcome, Record, Rejection, Usage
from dsd_lightning.distillation.rules import Verdict, accepted, read_verdict

STRUCTURE_FAMILY = "relighting"
"""The family whose pairs must show the same pixels, too."""


@dataclass(frozen=True)
class _Judged:
    verdicts: tuple[Verdict, ...]
    """One a question that ends with yes or no; empty where one could not be read."""
    words: tuple[str, ...]
    answers: tuple[Answer, ...]


class Verify:
    """A model that sees answers three questions on each unordered pair of panels (paper, 3.1.3 and supplement A.2).

    Which is common, what it looks like in each, whether it is the same: one conversation, that ends with yes or no. Pairs
    of the relighting family are also asked whether everything is still in its place.

    Args:
        agent: the model.
        prompts: the words it is asked with (`verify_common`, `verify_describe`, `verify_identical`, `verify_structure`).
        attempts: conversations on one pair, until the verdict can be read.
        least_confidence: pairs are kept whose judge says at least this confidence, in [0, 1], whatever its last word;
            None goes by the last word alone, as the paper does. Changing it asks nothing again.
        curate: false keeps all pairs, with their verdicts, for comparison.

    Raises:
        DistillationError: a confidence outside [0, 1].
    """

    name: ClassVar[str] = "verify"
    looks_at: ClassVar[tuple[str, ...]] = PANELS

    def __init__(
        self, agent: Agent, prompts: Prompts, attempts: int, least_confidence: float | None, curate: bool
    ) -> None:
        if least_confidence is not None and not 0 <= least_confidence <= 1:
            raise DistillationError(f"verify.least_confidence={least_confidence}: must be in [0, 1], or null")
        self.agent, self.prompts, self.attempts = agent, prompts, attempts
        self.least_confidence, self.curate = least_confidence, curate

    def settings(self) -> Mapping[str, Any]:
        names = ("verify_common", "verify_describe", "verify_identical", "verify_structure")
        return {
            "agent": self.agent.settings(),
            "words": [self.prompts.text(name) for name in names],
            "attempts": self.attempts,
            "least_confidence": self.least_confidence,
            "curate": self.curate,
        }

    def run(self, records: Sequence[Record]) -> Outcome:
        pairs = [pair for record in records for pair in self._pairs(record)]
        kept: list[Record] = []
        rejected: list[Rejection] = []
        answers: list[Answer] = []
        for pair, result in zip(pairs, for_each(self.agent, pairs, self._judge), strict=True):
            bare = Record(pair.id, pair.values, pair.stored)
            if isinstance(result, AgentFailure):
                rejected.append(Rejection.by_failure(bare, result))
                continue
            answers += result.answers
            if not result.verdicts:
                rejected.append(Rejection(bare, "unclear_verdict", result.words[-1]))
                continue
            confidences = [each.confidence for each in result.verdicts]
            stated_confidences = [each for each in confidences if each is not None]
            judged = bare.having(
                same=all(each.same for each in result.verdicts),
                confidence=min(stated_confidences) if len(stated_confidences) == len(confidences) else None,
                words=list(result.words),
            )
            reason = self._reason(result.verdicts)
            if reason is None or not self.curate:
                kept.append(judged)
            else:
                rejected.append(Rejection(judged, reason, result.words[-1]))
        return Outcome(kept, rejected, Usage.of(answers))

    def _pairs(self, record: Record) -> list[Record]:
        pairs = []
        for i, j in combinations(range(len(PANELS)), 2):
            names = (PANELS[i], PANELS[j])
            pairs.append(
                Record(
                    f"{record.id}-{i}{j}",
                    {**record.values, "panels": [i, j]},
                    {side: record.stored[name] for side, name in zip(SIDES, names, strict=True)},
                    {side: record.images[name] for side, name in zip(SIDES, names, strict=True)},
                )
            )
        return pairs

    def requests(self, pair: Record) -> tuple[Request, list[Message]]:
        """Return the opening of a pair's conversation, and its further turns."""
        images = [ImagePart(pair.images[side]) for side in SIDES]
        opening = Request.of(*images, self.prompts.fill("verify_common"))
        turns = [Message.user(self.prompts.fill(name)) for name in ("verify_describe", "verify_identical")]
        if pair.values.get("family") == STRUCTURE_FAMILY:
            turns.append(Message.user(self.prompts.fill("verify_structure")))
        return opening, turns

    def _judge(self, pair: Record) -> _Judged:
        opening, turns = self.requests(pair)
        ends = len(turns) - 1  # turns that end with a verdict: all but the description
        answers: list[Answer] = []
        for attempt in range(self.attempts):
            said = self.agent.converse(replace(opening, attempt=attempt), turns)
            answers += said
            verdicts = [read_verdict(each.text) for each in said[-ends:]]
            read = tuple(each for each in verdicts if each is not None)
            if len(read) == ends:
                break
        else:
            read = ()
        return _Judged(read, tuple(each.text for each in said), tuple(answers))

    def _reason(self, verdicts: Sequence[Verdict]) -> str | None:
        for verdict, reason in zip(verdicts, ("not_identical", "moved"), strict=False):
            if not accepted(verdict.same, verdict.confidence, self.least_confidence):
                return reason
        return None

    def close(self) -> None:
        self.agent.close()
