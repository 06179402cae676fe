"""Stage 7: writes a caption of each panel and an edit instruction from one to the other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Protocol, runtime_checkable

from dsd_lightning.agents import Agent, AgentFailure, Answer, ImagePart, Request
from dsd_lightning.agents.many import ask_until_valid, for_each
from dsd_lightning.distillation.prompts import Prompts
from dsd_lightning.distillation.records import DIRECTIONS, SIDES, Outcome, Record, Rejection, Usage
from dsd_lightning.distillation.rules import Words, plain


@runtime_checkable
class Describer(Protocol):
    """Writes the captions and instructions of a pair."""

    looks_at: tuple[str, ...]

    def settings(self) -> Mapping[str, Any]:
        """Return what decides its words, plain JSON."""
        ...

    def describe(self, pairs: Sequence[Record], words: Words) -> list[tuple[dict[str, Any], list[Answer]] | Rejection]:
        """Return, a pair, {"captions": {side: text}, "instructions": {target side: text}} and the answers, or why not."""
        ...

    def close(self) -> None:
        """Give connections back."""
        ...


class Caption:
    """Finds a target description and an edit instruction for both directions of a pair (paper, supplement A.3).

    Args:
        describer: who finds them.
        words: the rules they must keep.
    """

    name: ClassVar[str] = "caption"
    looks_at: ClassVar[tuple[str, ...]] = SIDES

    def __init__(self, describer: Describer, words: Words) -> None:
        self.describer, self.words = describer, words

    def settings(self) -> Mapping[str, Any]:
        return {"describer": self.describer.settings(), "max_tokens": self.words.max_tokens}

    def run(self, records: Sequence[Record]) -> Outcome:
        kept: list[Record] = []
        rejected: list[Rejection] = []
        answers: list[Answer] = []
        for pair, described in zip(records, self.describer.describe(records, self.words), strict=True):
            bare = Record(pair.id, pair.values, pair.stored)
            if isinstance(described, Rejection):
                rejected.append(Rejection(bare, described.reason, described.detail))
            else:
                values, said = described
                answers += said
                kept.append(bare.having(**values))
        return Outcome(kept, rejected, Usage.of(answers))

    def close(self) -> None:
        self.describer.close()


class ModelDescriber:
    """A model that sees describes the panels.

    Args:
        agent: the model.
        prompts: the words it is asked with (`caption_target`, `caption_instruction`).
        attempts: requests for one text, each naming the rule that the last answer broke.
    """

    looks_at: tuple[str, ...] = SIDES

    def __init__(self, agent: Agent, prompts: Prompts, attempts: int) -> None:
        self.agent, self.prompts, self.attempts = agent, prompts, attempts

    def settings(self) -> Mapping[str, Any]:
        names = ("caption_target", "caption_instruction", "caption_again")
        return {
            "agent": self.agent.settings(),
            "words": [self.prompts.text(name) for name in names],
            "attempts": self.attempts,
        }

    def requests(self, pair: Record, words: Words) -> list[tuple[str, str, Request]]:
        """Return (kind, side, request) of the four texts of a pair: equal panels of several pairs are asked once."""
        limit = str(words.max_tokens)
        asked = []
        for reference, target in DIRECTIONS:
            one, other = (ImagePart(pair.images[side]) for side in (reference, target))
            describe = Request.of(other, self.prompts.fill("caption_target", max_tokens=limit))
            edit = Request.of(one, other, self.prompts.fill("caption_instruction", max_tokens=limit))
            asked += [("captions", target, describe), ("instructions", target, edit)]
        return asked

    def describe(self, pairs: Sequence[Record], words: Words) -> list[tuple[dict[str, Any], list[Answer]] | Rejection]:
        """Ask for all texts of all pairs."""

        def ask(pair: Record) -> tuple[dict[str, Any], list[Answer]] | Rejection:
            texts: dict[str, Any] = {"captions": {}, "instructions": {}}
            answers: list[Answer] = []
            for kind, side, request in self.requests(pair, words):
                answer, rule, said = ask_until_valid(
                    self.agent,
                    request,
                    lambda text: words.broken_by_caption(plain(text)),
                    lambda rule: self.prompts.fill("caption_again", broken=rule),
                    self.attempts,
                )
                answers += said
                if answer is None:
                    return Rejection(pair, "caption_breaks_rules", f"{rule}: {said[-1].text}")
                texts[kind][side] = plain(answer.text)
            return texts, answers

        results = for_each(self.agent, pairs, ask)
        return [
            Rejection.by_failure(pair, result) if isinstance(result, AgentFailure) else result
            for pair, result in zip(pairs, results, strict=True)
        ]

    def close(self) -> None:
        self.agent.close()
