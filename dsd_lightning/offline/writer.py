"""Who answers a language model's questions where there is no network? Rules that read and write the miniature's captions.

It is asked through the same agent with the same words as a real model, and sees nothing but them. Whether a caption has a
subject it finds by the wording of the miniature's captions; grid prompts it writes in the wording that the tiny base was
pretrained on.
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
        seed: of the places, backgrounds, light and styles that it thinks of.
        tell: share of its prompts that tell who is to be drawn, in [0, 1], by the caption; the others only ask for one
            character in all panels, and such a teacher draws several.

    Raises:
        DistillationError: a share outside [0, 1].
    """

    identity = "offline"

    def __init__(self, seed: int, tell: float) -> None:
        if not 0 <= tell <= 1:
            raise DistillationError(f"agents.llm.provider.tell={tell}: must lie in [0, 1]")
        self.model = f"rules-{tell:g}-{seed}"
        self.seed, self.tell = seed, tell
        self._known: dict[str, Identity] = {}

    async def send(self, messages: Sequence[Message], sampling: Sampling, timeout_seconds: float) -> Reply:
        """Answer whether a caption has a subject, or with a grid prompt, as the first question asks."""
        question = next(message.text for message in messages if message.role == "user")
        found = _CAPTION.search(question)
        caption = found[1] if found else ""
        identity = self._subject(caption)
        if "grid of four" not in question:
            text = f"yes: {subject(identity)}" if identity is not None else "no: nobody is in it"
        elif identity is None:
            text = "I find nobody in this caption."
        else:
            text = self._grid(identity, caption, sum(message.role == "assistant" for message in messages))
        return Reply(text, "stop", self.model, len(question.split()), len(text.split()))

    def _subject(self, caption: str) -> Identity | None:
        """Return who a caption of the miniature world tells of."""
        if not self._known:
            self._known = {subject(identity): identity for identity in all_identities()}
        start = re.search(r"\ban? \w+ \w+ with ", caption)
        if start is None:
            return None
        # Its phrase ends with the face: the second comma-separated part.
        phrase = ",".join(caption[start.start() :].split(",")[:2]).strip()
        return self._known.get(phrase)

    def _grid(self, identity: Identity, caption: str, asked_before: int) -> str:
        """Return a grid prompt; another one each time it is asked again."""
        rng = numpy_generator(self.seed, "grid prompt", caption, asked_before)
        first = draw_context(rng)
        # Four different colours of ground, so that panels can be told apart.
        grounds = rng.permutation(len(BACKGROUND_COLORS))[:_PANELS]
        contexts: list[Context] = []
        for ground in grounds:
            drawn = share_light_and_style(draw_context(rng), first)
            contexts.append(Context(**{**vars(drawn), "background_color": int(ground)}))
        told = uniform(self.seed, "told", caption) < self.tell
        return grid_caption(identity if told else None, contexts, rng)

    async def close(self) -> None:
        """Nothing to give back."""
