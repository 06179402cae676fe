"""What is a story, and how does it lie in a file that people edit?"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from PIL import Image

from dsd_lightning.generation.jobs import GenerationError, one_line

HOW = (
    "Change any text or seed and give the same command again: what is changed is drawn anew. A text that is emptied is "
    'written anew: "" for character, [] for story and panels.'
)
"""First entry of the file."""


@dataclass(frozen=True)
class Panel:
    """One panel: the words below it, the prompt it is drawn from, and the seed of its noise.

    The first panel is the given image: its prompt describes it, and is not drawn.
    """

    caption: str
    prompt: str
    seed: int = 0


@dataclass(frozen=True)
class Story:
    """A story as far as it is told: what is empty is still to be written.

    Attributes:
        panel_count: panels of the page, the given image included.
        idea: what the user said that it is about.
        character: a description of the given image with its main character (step 1).
        story: what happens, one text a panel (step 2).
        panels: the panels, each of which makes sense alone (step 3).
    """

    panel_count: int
    idea: str = ""
    character: str = ""
    story: list[str] = field(default_factory=list)
    panels: list[Panel] = field(default_factory=list)


@runtime_checkable
class Storyteller(Protocol):
    """Whoever writes a story: each step is given what the steps before it said, as it was edited."""

    def character(self, image: Image.Image, story: Story) -> str:
        """Return a description of the image with its main character."""
        ...

    def story(self, image: Image.Image, story: Story) -> list[str]:
        """Return what happens, one text a panel."""
        ...

    def panels(self, image: Image.Image, story: Story) -> list[Panel]:
        """Return captions and prompts, each of which makes sense alone; seeds are set by the caller."""
        ...

    def close(self) -> None:
        """Give connections back."""
        ...


def with_seeds(story: Story, seed: int) -> Story:
    """Return `story` with the seeds `seed`, `seed` + 1, ... in its panels."""
    return replace(story, panels=[replace(panel, seed=seed + index) for index, panel in enumerate(story.panels)])


def write_story(story: Story, file: Path) -> None:
    """Write the file beside its place and rename it."""
    file.parent.mkdir(parents=True, exist_ok=True)
    beside = file.with_name(f".{file.name}.{os.getpid()}.tmp")
    beside.write_text(json.dumps({"how": HOW, **asdict(story)}, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    os.replace(beside, file)


def read_story(file: Path) -> Story:
    """Return the story in a file.

    Raises:
        GenerationError: naming the file and the entry: no JSON, an entry that is missing, unknown or of another kind.
    """
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise GenerationError(f"{file} cannot be read as JSON: {error}") from error
    if not isinstance(content, dict):
        raise GenerationError(f"{file}: a JSON object is needed")
    content.pop("how", None)
    return story_of(content, str(file))


def story_of(content: Mapping[str, Any], where: str) -> Story:
    """Return the story that a JSON object holds; `where` names it in errors.

    Raises:
        GenerationError: an entry that is missing, unknown or of another kind.
    """
    values = _checked(content, Story, where)
    panels = []
    for number, panel in enumerate(values.get("panels", []), start=1):
        if not isinstance(panel, dict):
            raise GenerationError(f"{where}, panel {number}: an object with caption, prompt and seed is needed")
        given = Panel(**_checked(panel, Panel, f"{where}, panel {number}"))
        panels.append(replace(given, caption=given.caption.strip(), prompt=one_line(given.prompt)))
    if not all(isinstance(text, str) for text in values.get("story", [])):
        raise GenerationError(f"{where}, story: a list of texts is needed")
    story = Story(**{**values, "panels": panels})
    for name in ("story", "panels"):
        told = len(getattr(story, name))
        if told not in (0, story.panel_count):
            raise GenerationError(f"{where}: {told} entries in {name}, but panel_count is {story.panel_count}")
    for number, panel in enumerate(story.panels[1:], start=2):
        if not panel.prompt:
            raise GenerationError(f"{where}: panel {number} has no prompt; write one")
    return story


_KINDS: dict[type, dict[str, type]] = {
    Story: {"panel_count": int, "idea": str, "character": str, "story": list, "panels": list},
    Panel: {"caption": str, "prompt": str, "seed": int},
}


def _checked(content: Mapping[str, Any], of: type, where: str) -> dict[str, Any]:
    kinds = _KINDS[of]
    if unknown := sorted(set(content) - set(kinds)):
        raise GenerationError(f"{where}: unknown entry {unknown[0]!r}; known are {', '.join(kinds)}")
    for name, kind in kinds.items():
        if name not in content and name in ("panel_count", "caption", "prompt"):
            raise GenerationError(f"{where}: no {name}")
        if name in content and (not isinstance(content[name], kind) or isinstance(content[name], bool)):
            raise GenerationError(f"{where}: {name}={content[name]!r} must be of kind {kind.__name__}")
    return dict(content)


def next_step(story: Story) -> str | None:
    """Return the first step whose text is still to be written, or None."""
    if story.panels:
        return None
    if story.story:
        return "prompts"
    return "story" if story.character else "character"


def tell(teller: Storyteller, step: str, image: Image.Image, story: Story) -> Story:
    """Return `story` with what one step writes: "character", "story" or "prompts"."""
    if step == "character":
        return replace(story, character=teller.character(image, story))
    if step == "story":
        return replace(story, story=teller.story(image, story))
    return replace(story, panels=teller.panels(image, story))
