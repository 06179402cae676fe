"""Stage 2: keeps captions with a clear subject to preserve, and names it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from dsd_lightning.agents import Agent, AgentFailure, Answer, Request
from dsd_lightning.agents.many import for_each
from dsd_lightning.distillation.prompts import Prompts
from dsd_lightning.distillation.records import Outcome, Record, Rejection, Usage
from dsd_lightning.distillation.rules import read_subject


class Filter:
    """A language model keeps captions with a subject, and names it (paper, supplement A.1).

    Args:
        agent: the language model.
        prompts: the words it is asked with (`filter`).
        attempts: requests for one caption, until the answer can be read.
    """

    name: ClassVar[str] = "filter"
    looks_at: ClassVar[tuple[str, ...]] = ()

    def __init__(self, agent: Agent, prompts: Prompts, attempts: int) -> None:
        self.agent, self.prompts, self.attempts = agent, prompts, attempts

    def settings(self) -> Mapping[str, Any]:
        words = [self.prompts.text("filter"), self.prompts.text("filter_system")]
        return {"agent": self.agent.settings(), "words": words, "attempts": self.attempts}

    def requests(self, record: Record) -> list[Request]:
        """Return what is asked of one record, once for every attempt."""
        question = self.prompts.fill("filter", caption=record.values["caption"])
        system = self.prompts.fill("filter_system")
        return [Request.of(question, system=system, attempt=attempt) for attempt in range(self.attempts)]

    def run(self, records: Sequence[Record]) -> Outcome:
        results = for_each(self.agent, records, self._ask)
        kept: list[Record] = []
        rejected: list[Rejection] = []
        answers: list[Answer] = []
        for record, result in zip(records, results, strict=True):
            if isinstance(result, AgentFailure):
                rejected.append(Rejection.by_failure(record, result))
                continue
            answers += result
            said = read_subject(result[-1].text)
            if said is None:
                rejected.append(Rejection(record, "unclear_answer", result[-1].text))
            elif said[0]:
                kept.append(record.having(subject=said[1]))
            else:
                rejected.append(Rejection(record, "no_subject", said[1] or "no reason given"))
        return Outcome(kept, rejected, Usage.of(answers))

    def _ask(self, record: Record) -> list[Answer]:
        answers: list[Answer] = []
        for request in self.requests(record):
            answers.append(self.agent.ask(request))
            if read_subject(answers[-1].text) is not None:
                break
        return answers

    def close(self) -> None:
        self.agent.close()
