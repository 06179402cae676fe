"""Who answers a judge's questions where there is no network? A provider that looks at pixels, and at nothing else."""

from __future__ import annotations

import io
from collections.abc import Sequence

import numpy as np
from PIL import Image

from dsd_lightning.agents import Message, Picture, Sampling
from dsd_lightning.agents.providers.provider import Reply
from dsd_lightning.offline.pixel_judge import same_character as eyes

_QUESTIONS = 3


class PixelJudge:
    """Answers the three questions on two pictures of one figure each.

    The confidence is a logistic function of how the two figures agree (`eyes.Likeness`).

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
        pictures = [part for message in messages for part in message.parts if isinstance(part, Picture)]
        asked = sum(message.role == "assistant" for message in messages)
        text = "I compare two pictures." if len(pictures) != 2 or asked >= _QUESTIONS else self._answer(pictures, asked)
        return Reply(text, "stop", self.model, 0, len(text.split()))

    def _answer(self, pictures: Sequence[Picture], asked: int) -> str:
        if asked == 0:
            return "A figure before a ground, in both."
        figures = [eyes.cut_out(Image.open(io.BytesIO(picture.data))) for picture in pictures]
        if asked == 1:
            return "\n".join(
                f"{place}: {_looks(figure)}" for place, figure in zip(("first", "second"), figures, strict=True)
            )
        one, other = figures
        if one is None or other is None:
            return "There is no figure in one of them.\nconfidence: 0\nno"
        likeness = eyes.compare(one, other)
        confidence = self.confidence(likeness)
        return (
            f"Laid over one another they share {likeness.overlap:.2f} of their outline, differ by {likeness.mean:.3f} in "
            f"the mean and by {likeness.worst:.3f} where they differ most.\n"
            f"confidence: {round(100 * confidence)}\n{'yes' if confidence >= 0.5 else 'no'}"
        )

    def confidence(self, likeness: eyes.Likeness) -> float:
        """Return how sure it is that the figures are the same, in [0, 1]."""
        score = self.bias + self.mean * likeness.mean + self.worst * likeness.worst
        return float(1 / (1 + np.exp(-np.clip(score, -50, 50))))

    async def close(self) -> None:
        """Nothing to give back."""


def _looks(figure: eyes.Figure | None) -> str:
    if figure is None:
        return "no figure can be told from the ground"
    inside = np.asarray(figure.cover) > 0
    red, green, blue = np.asarray(figure.picture)[inside].mean(axis=0)
    return (
        f"a figure of {int(inside.sum())} pixels around ({figure.center[0]:.0f}, {figure.center[1]:.0f}), in the mean of "
        f"colour ({red:.0f}, {green:.0f}, {blue:.0f})"
    )
