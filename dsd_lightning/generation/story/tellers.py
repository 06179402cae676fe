"""Writes stories: with a language model that sees the first panel, or from the miniature world's own story."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from PIL import Image

from dsd_lightning.agents import Agent, AuthenticationFailed, ImagePart, Message, Request
from dsd_lightning.agents.presets import find_agent
from dsd_lightning.files.rows import Row, Table
from dsd_lightning.generation.jobs import GenerationError
from dsd_lightning.generation.llm_calls import NoAnswer, instruction, line_of
from dsd_lightning.generation.story.story import Panel, Story, Storyteller
from dsd_lightning.miniature.captions import context_phrases
from dsd_lightning.miniature.world import Context

log = logging.getLogger(__name__)

ATTEMPTS = 3
"""Calls per turn before an answer of the wrong form is an error."""

Parsed = TypeVar("Parsed")


class AgentStoryteller:
    """A language model in one conversation of three turns, as in the paper (section C.3).

    Earlier answers are sent as they are in the story, so that edits are followed.

    Raises:
        GenerationError: no usable answer in `ATTEMPTS` attempts. AgentFailure: see `agents`.
    """

    def __init__(self, agent: Agent) -> None:
        self._agent = agent

    def character(self, image: Image.Image, story: Story) -> str:
        return self._ask(self._turns(image, story)[:1], lambda text: text)

    def story(self, image: Image.Image, story: Story) -> list[str]:
        def parsed(text: str) -> list[str]:
            entries = _json_list(text, story.panel_count)
            return [_text_of(entry) for entry in entries]

        return self._ask(self._turns(image, story)[:3], parsed)

    def panels(self, image: Image.Image, story: Story) -> list[Panel]:
        def parsed(text: str) -> list[Panel]:
            entries = _json_list(text, story.panel_count)
            if not all(isinstance(entry, dict) for entry in entries):
                raise NoAnswer("the list holds no objects")
            return [Panel(_text_of(entry.get("caption")), _text_of(entry.get("prompt"))) for entry in entries]

        return self._ask(self._turns(image, story), parsed)

    def close(self) -> None:
        self._agent.close()

    def _turns(self, image: Image.Image, story: Story) -> list[Message]:
        idea = f" It is about: {story.idea}" if story.idea else ""
        return [
            Message.user(instruction("story_character"), ImagePart.of(image)),
            Message.assistant(story.character),
            Message.user(instruction("story_panels", panels=story.panel_count, idea=idea)),
            Message.assistant(json.dumps(story.story, ensure_ascii=False)),
            Message.user(instruction("story_prompts", panels=story.panel_count)),
        ]

    def _ask(self, turns: list[Message], parse: Callable[[str], Parsed]) -> Parsed:
        reason = ""
        for attempt in range(ATTEMPTS):
            answer = self._agent.ask(Request(tuple(turns), attempt=attempt))
            try:
                return parse(line_of(answer))
            except NoAnswer as failure:
                reason = str(failure)
                log.warning("%s gave no usable answer: %s", answer.served_model, reason)
        raise GenerationError(
            f"{self._agent.model} gave no usable answer in {ATTEMPTS} attempts ({reason}); choose another model with --agents"
        )


def _json_list(text: str, count: int) -> list[Any]:
    """Return the JSON list in a text, which may have a code fence or words around it.

    Raises:
        NoAnswer: there is none, or it has another length.
    """
    start, end = text.find("["), text.rfind("]")
    try:
        entries = json.loads(text[start : end + 1]) if 0 <= start < end else None
    except ValueError:
        entries = None
    if not isinstance(entries, list):
        raise NoAnswer("no JSON list")
    if len(entries) != count:
        raise NoAnswer(f"{len(entries)} panels instead of {count}")
    return entries


def _text_of(entry: Any) -> str:
    if not isinstance(entry, str) or not entry.strip():
        raise NoAnswer(f"an entry without text: {entry!r}")
    return entry.strip()


_MINIATURE_STORY = Path(__file__).with_name("miniature_story.csv")
"""Captions of the miniature world's story with their contexts; shorter stories leave out the highest ranks."""


class MiniatureStoryteller:
    """The miniature world's own story, in the words of its captions; the idea is not used."""

    def character(self, image: Image.Image, story: Story) -> str:
        return "this character, as the first panel shows it"

    def story(self, image: Image.Image, story: Story) -> list[str]:
        return [row.required_text("caption") for row in self._rows(story)]

    def panels(self, image: Image.Image, story: Story) -> list[Panel]:
        prompts = [", ".join(["this character", *context_phrases(_context(row))]) for row in self._rows(story)]
        prompts[0] = story.character
        return [Panel(caption, prompt) for caption, prompt in zip(story.story, prompts, strict=True)]

    def close(self) -> None:
        pass

    def _rows(self, story: Story) -> list[Row]:
        return [row for row in Table(_MINIATURE_STORY) if int(row.required_text("rank")) < story.panel_count]


def _context(row: Row) -> Context:
    """Return the context in a row; empty cells and missing columns take the first value."""
    values = {name: (words, row.text(name) or words[0]) for name, words in Context.vocabulary.items()}
    return Context(**{name: words.index(word) for name, (words, word) in values.items()})


def find_storyteller(agents: Sequence[str] | None, offline: bool, miniature: bool) -> Storyteller | None:
    """Return the story's writer; None if that is a language model without a key.

    The shipped miniature has its own story unless `agents` names a model, since it knows no other words.
    """
    if offline or (miniature and not agents):
        return MiniatureStoryteller()
    try:
        return AgentStoryteller(find_agent(agents))
    except AuthenticationFailed:
        return None
