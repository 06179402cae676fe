"""Scores images by the miniature world's exact attributes, read from pixels and text alone.

It sees what any judge sees: the turns of the conversation and the images. What it is asked for, it reads off the words and
the number of images; what the images show, `scene` reads.

Concept preservation: how many of the six attributes of an identity agree (style subjects: of the colours and the pattern).
Prompt following: the share of what the prompt says that the image shows. Debiased: where nearly all pixels of the image,
or of the reference's character, stand where they stood in the reference, that is copied; copying bounds concept preservation
by 0 and by 1, as the debiased rubric's scale has it, and costs two points and one of prompt following.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Sequence

import numpy as np

from dsd_lightning.agents.messages import ImagePart, Message, Sampling
from dsd_lightning.agents.providers.provider import Reply
from dsd_lightning.evaluation.judging.replies import HIGHEST
from dsd_lightning.images.pixels import load_rgb
from dsd_lightning.miniature import geometry
from dsd_lightning.miniature.world import Context, Identity, Scene
from dsd_lightning.offline.score_judge.scene import Pixels, as_pixels, scene_of

MODEL = "miniature-judge-1"
"""Name of the judge; counted up whenever it would score differently."""

SAME_IMAGE, SAME_CHARACTER = 0.10, 0.12
"""Root mean squared difference from the reference, on the [-1, 1] scale, up to which pixels are copied: of the whole
image, and of the reference's character. A true image in another pose differs by 0.3 and more."""

_SCORES_OF_SIX = (0, 0, 0, 1, 2, 3, 4)
"""Score by number of agreeing attributes of an identity. Guessing agrees in 1.3 of six."""

_SCORES_OF_THREE = (0, 1, 2, 4)
"""Score by number of agreeing attributes of a style."""

_STYLE = ("color", "second_color", "pattern")


# --- What the words ask for.

_PLACES = {
    r"\bin the center\b": 0,
    r"\bon the left\b": 1,
    r"\bon the right\b": 2,
    r"\bat the top\b": 3,
    r"\bat the bottom\b": 4,
}


def requested(text: str) -> dict[str, int]:
    """Return the attributes of a context that a prompt says; what it leaves unsaid is free."""
    text = text.lower()
    values: dict[str, int] = {}
    for pattern, value in _PLACES.items():
        if re.search(pattern, text):
            values["place"] = value
    for name, pattern in (
        ("size", r"\b({})\b"),
        ("rotation", r"\btilted ({})\b"),
        ("background_kind", r"\b({}) \w+ background"),
        ("background_color", r"\b({}) background"),
        ("style", r"\b({}) style"),
    ):
        words = Context.vocabulary[name]
        if match := re.search(pattern.format("|".join(words)), text):
            values[name] = words.index(match[1])
    colors, directions = Context.vocabulary["light_color"], Context.vocabulary["light_direction"]
    if match := re.search(rf"\b({'|'.join(colors)}) light", text):
        values["light_color"] = colors.index(match[1])
    if match := re.search(rf"\blight from (?:the )?({'|'.join(directions)})\b", text):
        values["light_direction"] = directions.index(match[1])
    return values


# --- What the images show.


def _pixels(data: bytes) -> Pixels:
    return as_pixels(load_rgb(data))


def _scene(pixels: Pixels) -> Scene | None:
    values = np.round((pixels.transpose(1, 2, 0) + 1) * 127.5).astype(np.uint8)
    return scene_of(values.tobytes())


def copied(generated: Pixels, reference: Pixels) -> int:
    """Return 2 where the whole image is the reference's, 1 where its character is, 0 otherwise."""
    apart = (generated - reference) ** 2
    if float(np.sqrt(apart.mean())) < SAME_IMAGE:
        return 2
    scene = _scene(reference)
    if scene is None:
        return 0
    silhouettes = geometry.silhouettes()
    character = silhouettes.masks[silhouettes.index(scene)].reshape(apart.shape[1:])
    return 1 if float(np.sqrt(apart[:, character].mean())) < SAME_CHARACTER else 0


def preservation(generated: Pixels, reference: Pixels, style: bool) -> int:
    """Return the score of concept preservation, 0 to 4."""
    one, other = _scene(generated), _scene(reference)
    if one is None or other is None:
        return 0
    names = _STYLE if style else tuple(Identity.vocabulary)
    agreeing = sum(getattr(one.identity, name) == getattr(other.identity, name) for name in names)
    return (_SCORES_OF_THREE if style else _SCORES_OF_SIX)[agreeing]


def following(generated: Pixels, text: str) -> tuple[int, str]:
    """Return the score of prompt following, 0 to 4, and what is wrong."""
    scene, wanted = _scene(generated), requested(text)
    if scene is None:
        return 0, "no character is to be seen"
    if not wanted:
        return HIGHEST, "the prompt asks for nothing in particular"
    wrong = [name for name, value in wanted.items() if getattr(scene.context, name) != value]
    return HIGHEST * (len(wanted) - len(wrong)) // len(wanted), f"wrong: {', '.join(wrong) or 'nothing'}"


# --- The judge.


def reply(rubric: str, text: str, images: Sequence[bytes]) -> str:
    """Return what the judge says.

    Args:
        rubric: the words of the first turn. Those that speak of copying make it debiased; those that speak of
            brushwork are a style's.
        text: the words of the last turn; none for concept preservation.
        images: files, in the order of the last turn.
    """
    debiased = re.search(r"\bcop(?:y|ies|ied|ying)\b", rubric, re.IGNORECASE) is not None
    pixels = [_pixels(data) for data in images]
    if text.strip():
        generated = pixels[0]
        score, why = following(generated, text)
        if debiased and len(pixels) > 1:
            taken = copied(generated, pixels[1])
            score, why = max(0, score - taken), why + ("; copied from the reference" if taken else "")
        return f"Analysis: {why}.\nScore: {score}"
    reference, generated = pixels[0], pixels[1]
    score = preservation(generated, reference, style=re.search("brush", rubric, re.IGNORECASE) is not None)
    if debiased and (taken := copied(generated, reference)):
        score = min(score, 2 - taken)
    return f"Score: {score}"


class MiniatureJudge:
    """The judge as a provider in this process, for an agent with cache, limits and records like any other's."""

    model = MODEL
    identity = "offline"

    async def send(self, messages: Sequence[Message], sampling: Sampling, timeout_seconds: float) -> Reply:
        """Answer at once; sampling has no say."""
        images = [part.data for message in messages for part in message.parts if isinstance(part, ImagePart)]
        rubric, text = messages[0].text, messages[-1].text
        if len(messages) == 1:
            # One turn, as for stories: the rubric comes first in it.
            rubric, *rest = (part for part in messages[0].parts if isinstance(part, str))
            text = "\n".join(rest)
        said = await asyncio.to_thread(reply, rubric, text, images)
        return Reply(said, "stop", self.model, 0, 0)

    async def close(self) -> None:
        """Do nothing: there is no connection."""
