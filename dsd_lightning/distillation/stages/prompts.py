"""Stage 3: writes prompts with which the teacher generates one subject four times."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from dsd_lightning.agents import Agent, AgentFailure, Answer, Request
from dsd_lightning.agents.many import ask_until_valid, for_each
from dsd_lightning.distillation.prompts import Prompts
from dsd_lightning.distillation.records import DistillationError, Outcome, Record, Rejection, Usage
from dsd_lightning.distillation.rules import Words, plain
from dsd_lightning.randomness import uniform


class GridPrompts:
    """A language model turns each caption into a grid prompt (paper, Section 3.1.2 and supplement A.1).

    Args:
        agent: the language model.
        prompts: the words it is asked with: `grid_system`, and `grid_FAMILY` for every family.
        words: the rules of grid prompts.
        families: share of the records that each family gets, by name; keyed by the record's id.
        attempts: requests for one prompt, each naming the rule that the last answer broke.
        with_caption: false asks without the caption reference, as the paper compares.
        seed: of the choice of families.

    Raises:
        DistillationError: no family, a negative share, or a family without a template; a provider that invents no
            subjects (`invents = False`, as the offline writer's) is asked without the caption.
    """

    name: ClassVar[str] = "prompts"
    looks_at: ClassVar[tuple[str, ...]] = ()

    def __init__(
        self,
        agent: Agent,
        prompts: Prompts,
        words: Words,
        families: Mapping[str, float],
        attempts: int,
        with_caption: bool,
        seed: int,
    ) -> None:
        self.agent, self.prompts, self.words = agent, prompts, words
        self.families = {str(name): float(share) for name, share in families.items() if share}
        self.attempts, self.with_caption, self.seed = attempts, with_caption, seed
        if not self.families or min(self.families.values()) < 0:
            raise DistillationError(f"families={dict(families)}: give at least one a share > 0, such as character: 1.0")
        for family in self.families:
            self.prompts.text(f"grid_{family}")
        if not with_caption and not getattr(agent.provider, "invents", True):
            raise DistillationError(
                f"stages.prompts.with_caption=false: {agent.model} writes by rule and invents no subject without a caption; "
                "choose a language model (agents=paper, openai, gemini or local), or stages.prompts.with_caption=true"
            )

    def settings(self) -> Mapping[str, Any]:
        names = ["grid_system", "grid_again", f"quadrants_{self.words.quadrants}"]
        return {
            "agent": self.agent.settings(),
            "words": [self.prompts.text(name) for name in [*names, *(f"grid_{each}" for each in self.families)]],
            "rules": [self.words.max_tokens, self.words.quadrants],
            "families": self.families,
            "attempts": self.attempts,
            "with_caption": self.with_caption,
            "seed": self.seed,
        }

    def family(self, record: Record) -> str:
        """Return the family of a record, chosen by its id."""
        point = uniform(self.seed, "family", record.id) * sum(self.families.values())
        for name, share in self.families.items():
            if (point := point - share) < 0:
                return name
        return name

    def request(self, record: Record) -> Request:
        """Return what is asked first of a record."""
        caption = record.values["caption"] if self.with_caption else "(think of one)"
        question = self.prompts.fill(
            f"grid_{self.family(record)}",
            caption=caption,
            quadrants=self.prompts.fill(f"quadrants_{self.words.quadrants}"),
        )
        system = self.prompts.fill("grid_system", max_tokens=str(self.words.max_tokens))
        # Without a caption all questions are alike: the attempt makes them differ, so that each gets its own answer.
        attempt = 0 if self.with_caption else int(uniform("attempt", record.id) * 2**31)
        return Request.of(question, system=system, attempt=attempt)

    def run(self, records: Sequence[Record]) -> Outcome:
        kept: list[Record] = []
        rejected: list[Rejection] = []
        answers: list[Answer] = []
        results = for_each(self.agent, records, self._ask)
        for record, result in zip(records, results, strict=True):
            record = record.having(family=self.family(record))
            if isinstance(result, AgentFailure):
                rejected.append(Rejection.by_failure(record, result))
                continue
            answer, rule, said = result
            answers += said
            if answer is None:
                rejected.append(Rejection(record, "prompt_breaks_rules", f"{rule}: {said[-1].text}"))
            else:
                kept.append(record.having(prompt=plain(answer.text)))
        return Outcome(kept, rejected, Usage.of(answers))

    def _ask(self, record: Record) -> tuple[Answer | None, str, list[Answer]]:
        return ask_until_valid(
            self.agent,
            self.request(record),
            lambda text: self.words.broken_by_grid(plain(text)),
            lambda rule: self.prompts.fill("grid_again", broken=rule),
            self.attempts,
        )

    def close(self) -> None:
        self.agent.close()
