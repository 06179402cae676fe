"""Holds a story and its steps, and reads and writes it as a file that people edit."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, field, replace
from pathlib import Path
from typing import Annotated, Any, Protocol, runtime_checkable

from PIL import Image
from pydantic import ConfigDict, Field, StrictInt, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from dsd_lightning.files.atomic import write_json
from dsd_lightning.files.text import read_text
from dsd_lightning.generation.jobs import GenerationError, one_line
from dsd_lightning.generation.story.arguments import FEWEST, MOST

HOW = (
    "Change any text or seed and run the same command again: changed panels are generated again. An emptied text is "
    'written again: "" for character, [] for story and panels.'
)
"""First entry of the file."""

LONGEST = 5000
"""Letters of a text in the file: a longer caption would make a page that no program opens."""

_STRICT = ConfigDict(extra="forbid", str_max_length=LONGEST)


@dataclass(frozen=True, config=_STRICT)
class Panel:
    """One panel: its caption, its prompt, and the seed of its noise.

    The first panel is the given image: its prompt describes it, and is not used.
    """

    caption: str
    prompt: str
    seed: Annotated[StrictInt, Field(ge=0, lt=2**63)] = 0


@dataclass(frozen=True, config=_STRICT)
class Story:
    """A story; what is empty is still to be written.

    Attributes:
        panel_count: panels of the page, the given image included.
        idea: the user's words about the story.
        character: a description of the given image with its main character (step 1).
        story: what happens, one text a panel (step 2).
        panels: the panels, each of which makes sense alone (step 3).
    """

    panel_count: Annotated[StrictInt, Field(ge=FEWEST, le=MOST)]
    idea: str = ""
    character: str = ""
    story: list[str] = field(default_factory=list)
    panels: list[Panel] = field(default_factory=list)


_STORY = TypeAdapter(Story)


@runtime_checkable
class Storyteller(Protocol):
    """Writes a story step by step; each step receives the texts of earlier steps as they were edited."""

    def character(self, image: Image.Image, story: Story) -> str:
        """Return a description of the image with its main character."""
        ...

    def story(self, image: Image.Image, story: Story) -> list[str]:
        """Return what happens, one text a panel."""
        ...

    def panels(self, image: Image.Image, story: Story) -> list[Panel]:
        """Return captions and prompts, each of which makes sense alone; the caller sets seeds."""
        ...

    def close(self) -> None:
        """Close connections."""
        ...


def with_seeds(story: Story, seed: int) -> Story:
    """Return `story` with the seeds `seed`, `seed` + 1, ... in its panels."""
    return replace(story, panels=[replace(panel, seed=seed + index) for index, panel in enumerate(story.panels)])


def write_story(story: Story, file: Path) -> None:
    """Write the file atomically."""
    write_json(file, {"how": HOW, **asdict(story)})


def read_story(file: Path) -> Story:
    """Return the story in a file.

    Raises:
        GenerationError: naming the file and the entry: no JSON, an entry that is missing, unknown or of another kind.
        TextError: the file is not UTF-8.
    """
    try:
        content = json.loads(read_text(file))
    except (ValueError, RecursionError) as error:  # of json, or of Python, which reads no integers of 4,300 digits
        raise GenerationError(f"{file} cannot be read as JSON: {error}") from error
    if not isinstance(content, dict):
        raise GenerationError(f"{file}: a JSON object is needed")
    content.pop("how", None)
    return story_of(content, str(file))


def story_of(content: Mapping[str, Any], where: str) -> Story:
    """Return the story in a JSON object; `where` names it in errors.

    Raises:
        GenerationError: an entry that is missing, unknown or of another kind.
    """
    try:
        story = _STORY.validate_python(content)
    except ValidationError as error:
        raise GenerationError("; ".join(f"{where}: {_message(each)}" for each in error.errors()[:3])) from error
    for name in ("story", "panels"):
        count = len(getattr(story, name))
        if count not in (0, story.panel_count):
            raise GenerationError(f"{where}: {count} entries in {name}, but panel_count is {story.panel_count}")
    panels = [replace(panel, caption=panel.caption.strip(), prompt=one_line(panel.prompt)) for panel in story.panels]
    for number, panel in enumerate(panels[1:], start=2):
        if not panel.prompt:
            raise GenerationError(f"{where}: panel {number} has no prompt; write one")
    return replace(story, panels=panels)


def _message(error: Any) -> str:
    """Return an error of pydantic with the entry's name, counted from 1: "panels, entry 2, seed=1.5: ..."."""
    place = ", ".join(f"entry {part + 1}" if isinstance(part, int) else str(part) for part in error["loc"])
    if error["type"] == "missing":
        return f"{place} is missing"
    if error["type"] == "unexpected_keyword_argument":
        return f"{place} is an unknown entry; remove it or correct its name"
    text = error["msg"].removeprefix("Input ")
    shown = repr(error["input"])
    return f"{place}={shown if len(shown) < 100 else shown[:100] + '...'} {text}"


def next_step(story: Story) -> str | None:
    """Return the first step whose text is still to be written, or None."""
    if story.panels:
        return None
    if story.story:
        return "prompts"
    return "story" if story.character else "character"


def write_step(teller: Storyteller, step: str, image: Image.Image, story: Story) -> Story:
    """Return `story` with the text of one step: "character", "story" or "prompts"."""
    if step == "character":
        return replace(story, character=teller.character(image, story))
    if step == "story":
        return replace(story, story=teller.story(image, story))
    return replace(story, panels=teller.panels(image, story))
