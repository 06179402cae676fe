"""Stands in for a VLM judge where there is no network: a provider that compares pixels."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from dsd_lightning.agents import ImagePart, Message, Sampling
from dsd_lightning.agents.providers.provider import Reply
from dsd_lightning.images.pixels import load_rgb
from dsd_lightning.offline.pixel_judge import same_character as eyes

_QUESTIONS = 3


class PixelJudge:
    """Answers the three questions on two images of one character each.

    The confidence is a logistic function of how the two characters agree (`eyes.Likeness`).

    Args:
        bias, mean, worst: its coefficients, found on rendered pairs (`calibrate`).

    It cannot say whether everything is in its place, so it is no judge of the relighting family.
    """

    identity = "offline"

    def __init__(self, bias: float, mean: float, worst: float) -> None:
        self.model = f"pixels{bias:+g}{mean:+g}{worst:+g}"
        self.bias, self.mean, self.worst = bias, mean, worst

    async def send(self, messages: Sequence[Message], sampling: Sampling, timeout_seconds: float) -> Reply:
        """Answer the last turn: what is common, what it looks like, whether it is the same."""
        images = [part for message in messages for part in message.parts if isinstance(part, ImagePart)]
        asked = sum(message.role == "assistant" for message in messages)
        text = "I compare two images." if len(images) != 2 or asked >= _QUESTIONS else self._answer(images, asked)
        return Reply(text, "stop", "offline judge of pixels", 0, len(text.split()))

    def _answer(self, images: Sequence[ImagePart], asked: int) -> str:
        if asked == 0:
            return "A character before a background, in both."
        characters = [eyes.cut_out(load_rgb(image.data)) for image in images]
        if asked == 1:
            return "\n".join(
                f"{place}: {_looks(character)}"
                for place, character in zip(("first", "second"), characters, strict=True)
            )
        one, other = characters
        if one is None or other is None:
            return "There is no character in one of them.\nconfidence: 0\nno"
        likeness = eyes.compare(one, other)
        confidence = self.confidence(likeness)
        return (
            f"Laid over one another they share {likeness.overlap:.2f} of their outline, differ by {likeness.mean:.3f} in "
            f"the mean and by {likeness.worst:.3f} where they differ most.\n"
            f"confidence: {round(100 * confidence)}\n{'yes' if confidence >= 0.5 else 'no'}"
        )

    def confidence(self, likeness: eyes.Likeness) -> float:
        """Return how sure it is that the characters are the same, in [0, 1]."""
        score = self.bias + self.mean * likeness.mean + self.worst * likeness.worst
        return float(1 / (1 + np.exp(-np.clip(score, -50, 50))))

    async def close(self) -> None:
        """Nothing to give back."""


def _looks(character: eyes.Character | None) -> str:
    if character is None:
        return "no character stands out from the background"
    inside = np.asarray(character.cover) > 0
    red, green, blue = np.asarray(character.image)[inside].mean(axis=0)
    return (
        f"a character of {int(inside.sum())} pixels around ({character.center[0]:.0f}, {character.center[1]:.0f}), "
        f"in the mean of colour ({red:.0f}, {green:.0f}, {blue:.0f})"
    )
