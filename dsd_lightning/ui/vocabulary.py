"""Finds the words of a prompt that the miniature was never trained on: its captions are made of some hundred words."""

from __future__ import annotations

import re
from functools import cache

import numpy as np

from dsd_lightning.miniature.captions import (
    depth_caption,
    full_caption,
    instruction,
    relighting_caption,
    target_caption,
)
from dsd_lightning.miniature.world import Scene, draw_context, draw_identity

_DRAWS = 800
"""Captions of each kind that the words are read from: enough for every attribute to come up many times."""

_WORD = re.compile(r"[a-z]+")


@cache
def known_words() -> frozenset[str]:
    """Return the words of the miniature's captions, in lower case."""
    rng = np.random.default_rng(0)
    words: set[str] = set()
    for _ in range(_DRAWS):
        context, other = draw_context(rng), draw_context(rng)
        scene = Scene(draw_identity(rng), context)
        captions = (target_caption(context, rng), instruction(other, context, rng), relighting_caption(context, rng))
        for caption in (*captions, full_caption(scene, rng), depth_caption(scene, rng)):
            words |= set(_WORD.findall(caption.lower()))
    return frozenset(words)


def unknown_words(text: str) -> list[str]:
    """Return the words of `text` that no caption of the miniature holds, in their order, each once."""
    return [word for word in dict.fromkeys(_WORD.findall(text.lower())) if word not in known_words()]
