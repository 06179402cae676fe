"""Writes captions and instructions for a user's images by a vision-language model."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import replace
from importlib.resources import files

from dsd_lightning.agents import Agent, ImagePart, Request
from dsd_lightning.agents.many import ask_until_valid, for_each
from dsd_lightning.images.pixels import load_rgb, shrink
from dsd_lightning.packing.candidates import PackingError
from dsd_lightning.packing.own_images import OwnImage

SIDE = 768
"""Greatest short side of the images that are sent, pixels."""

_ATTEMPTS = 3
_FIELDS = ("caption", "instruction")


def caption_images(images: Sequence[OwnImage], agent: Agent) -> tuple[list[OwnImage], dict[str, str]]:
    """Return the images with the texts that they lacked, and, by name, why others have none: those stay as they are.

    Answers are cached, so that a command that was stopped repeats no call.

    Args:
        images: those with a caption are not sent.
        agent: sees images.

    Raises:
        AgentFailure: one that every other image would meet as well: budget, quota, key.
        PackingError: the model described no image.
    """
    words = (files(__package__) / "caption_prompt.txt").read_text(encoding="utf-8").strip()

    def ask(image: OwnImage) -> OwnImage | str:
        request = Request.of(ImagePart.of(shrink(load_rgb(image.path), SIDE)), words)
        answer, rule, said = ask_until_valid(agent, request, _broken, "{} Answer again.".format, _ATTEMPTS)
        if answer is None:
            return f"{rule} {agent.model} said: {said[-1].text!r:.200}"
        texts = _parsed(answer.text)
        return replace(image, caption=texts["caption"], instruction=image.instruction or texts["instruction"])

    lacking = [image for image in images if image.caption is None]
    answers = dict(zip((image.name for image in lacking), for_each(agent, lacking, ask), strict=True))
    described = {name: each for name, each in answers.items() if isinstance(each, OwnImage)}
    failed = {name: str(each) for name, each in answers.items() if not isinstance(each, OwnImage)}
    if lacking and not described:
        name, why = next(iter(failed.items()))
        raise PackingError(
            f"{agent.model} captioned none of {len(lacking)} images; name a model that sees images with --agents. "
            f"The first, {name}: {why}"
        )
    return [described.get(image.name, image) for image in images], failed


def _parsed(text: str) -> dict[str, str]:
    """Return the answer's texts, one line each.

    Raises:
        ValueError: it is not the JSON object that was asked for.
    """
    match = re.search(r"\{.*\}", text, re.DOTALL)
    values = json.loads(match[0]) if match else None
    if not isinstance(values, dict) or not all(isinstance(values.get(name), str) for name in _FIELDS):
        raise ValueError("no object with the texts caption and instruction")
    return {name: re.sub(r"\s+", " ", values[name]).strip() for name in _FIELDS}


def _broken(text: str) -> str | None:
    try:
        texts = _parsed(text)
    except ValueError:
        return 'That is no JSON object with the texts "caption" and "instruction".'
    return None if all(texts.values()) else "One of the texts is empty."
