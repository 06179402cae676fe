"""Stands in for a language model where there is no network: rules that read and write the miniature's captions.

It is called through the same agent with the same texts as a real model, and has no other input. It recognises subjects by
the wording of the miniature's captions, and writes grid prompts in the wording that the tiny base was pretrained on.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from dsd_lightning.agents import Message, Sampling
from dsd_lightning.agents.providers.provider import Reply
from dsd_lightning.distillation.records import DistillationError
from dsd_lightning.miniature.captions import grid_caption, subject
from dsd_lightning.miniature.world import (
    BACKGROUND_COLORS,
    Context,
    Identity,
    all_identities,
    draw_context,
    share_light_and_style,
)
from dsd_lightning.randomness import numpy_generator, uniform

_CAPTION = re.compile(r"`([^`]*)`")
_PANELS = 4


class RuleWriter:
    """A provider that answers by rule.

    Args:
        seed: of the places, backgrounds, light and styles that it invents.
        name_subject: share of its prompts that name the subject, in [0, 1], chosen by the caption; the others only ask for
            one character in all panels, and the teacher then often generates several.

    Raises:
        DistillationError: a share outside [0, 1].
    """

    identity = "offline"
    invents = False
    """Without a caption it finds no subject, and has none of its own."""

    def __init__(self, seed: int, name_subject: float) -> None:
        if not 0 <= name_subject <= 1:
            raise DistillationError(f"agents.llm.provider.name_subject={name_subject}: must be in [0, 1]")
        self.model = f"rules-{name_subject:g}-{seed}"
        self.seed, self.name_subject = seed, name_subject
        self._identities: dict[str, Identity] = {}

    async def send(self, messages: Sequence[Message], sampling: Sampling, timeout_seconds: float) -> Reply:
        """Answer whether a caption has a subject, or with a grid prompt, as the first question asks."""
        question = next(message.text for message in messages if message.role == "user")
        match = _CAPTION.search(question)
        caption = match[1] if match else ""
        identity = self._subject(caption)
        if "grid of four" not in question:
            text = f"yes: {subject(identity)}" if identity is not None else "no: nobody is in it"
        elif identity is None:
            text = "I find nobody in this caption."
        else:
            text = self._grid(identity, caption, sum(message.role == "assistant" for message in messages))
        return Reply(text, "stop", "offline writer", len(question.split()), len(text.split()))

    def _subject(self, caption: str) -> Identity | None:
        """Return the character that a caption of the miniature world describes."""
        if not self._identities:
            self._identities = {subject(identity): identity for identity in all_identities()}
        start = re.search(r"\ban? \w+ \w+ with ", caption)
        if start is None:
            return None
        # Its phrase ends with the face: the second comma-separated part.
        phrase = ",".join(caption[start.start() :].split(",")[:2]).strip()
        return self._identities.get(phrase)

    def _grid(self, identity: Identity, caption: str, asked_before: int) -> str:
        """Return a grid prompt; another one each time it is asked again."""
        rng = numpy_generator(self.seed, "grid prompt", caption, asked_before)
        first = draw_context(rng)
        # Four different background colours, so that panels differ.
        grounds = rng.permutation(len(BACKGROUND_COLORS))[:_PANELS]
        contexts: list[Context] = []
        for ground in grounds:
            drawn = share_light_and_style(draw_context(rng), first)
            contexts.append(Context(**{**vars(drawn), "background_color": int(ground)}))
        named = uniform(self.seed, "told", caption) < self.name_subject
        return grid_caption(identity if named else None, contexts, rng)

    async def close(self) -> None:
        """Nothing to give back."""
