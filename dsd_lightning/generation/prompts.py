"""Enhances users' prompts with a language model, as the official code does."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from hydra.utils import instantiate
from PIL import Image

from dsd_lightning.agents import Agent, AuthenticationFailed, ImagePart, Request
from dsd_lightning.agents.many import ask_each
from dsd_lightning.agents.presets import find_settings
from dsd_lightning.generation.jobs import Job, one_line
from dsd_lightning.generation.llm_calls import NoAnswer, instruction, line_of
from dsd_lightning.images.pixels import load_rgb
from dsd_lightning.pipeline.inputs import fit

log = logging.getLogger(__name__)

GOING_ON = "continuing with your prompt unchanged"

SHORT_SIDE = 512
"""Short side of the reference image that a language model receives, pixels."""


def enhanced(jobs: Sequence[Job], chosen: Sequence[str] | None, miniature: bool) -> list[str]:
    """Return the prompts to generate from: enhanced by a language model, or the users' own, with a warning.

    Args:
        jobs: their texts and reference images.
        chosen: see `presets.find_settings`.
        miniature: whether the model is the shipped miniature, which knows only the words of its own world: its prompts
            are enhanced only if `chosen` names a language model.
    """
    own = [one_line(job.text) for job in jobs]
    try:
        settings = find_settings(chosen)
    except AuthenticationFailed as failure:
        log.warning(
            "prompt enhancement has no key for a language model (%s): %s (--disable_gemini_prompt turns it off)",
            failure,
            GOING_ON,
        )
        return own
    if miniature and not chosen:
        log.warning(
            "the shipped miniature knows only the words of its own world, so its prompt is not enhanced: %s "
            "(--agents NAME enhances it nevertheless)",
            GOING_ON,
        )
        return own
    agent: Agent = instantiate(settings)
    with agent:
        return enhance(agent, [cropped(load_rgb(job.image), job.size) for job in jobs], own)


def cropped(reference: Image.Image, size: tuple[int, int] | None) -> Image.Image:
    """Return a reference cropped to frames of `size` (height, width), at a resolution for language models."""
    height, width = size or (1, 1)
    scale = SHORT_SIDE / min(height, width)
    return fit(reference, round(height * scale), round(width * scale))


def enhance(agent: Agent, references: Sequence[Image.Image], texts: Sequence[str]) -> list[str]:
    """Return each text merged with a caption of its reference, in two calls: one captions, one merges.

    As in the official code, the user's wishes come first, the rest is from the caption. Without an answer, the text stays
    unchanged, and a warning says why. Equal references are captioned once.
    """
    questions = [Request.of(instruction("caption"), ImagePart.of(image)) for image in references]
    captions = ask_each(agent, questions, agent.ask)
    prompts = list(texts)
    requests: dict[int, Request] = {}
    for index, (text, answer) in enumerate(zip(texts, captions, strict=True)):
        try:
            requests[index] = Request.of(instruction("merge", prompt=text, caption=line_of(answer)))
        except NoAnswer as reason:
            _warn(index, len(texts), reason)
    for index, answer in zip(requests, ask_each(agent, list(requests.values()), agent.ask), strict=True):
        try:
            prompts[index] = line_of(answer)
        except NoAnswer as reason:
            _warn(index, len(texts), reason)
    return prompts


def _warn(index: int, count: int, reason: NoAnswer) -> None:
    which = f" of job {index + 1}" if count > 1 else ""
    log.warning("the prompt%s was not enhanced (%s): %s", which, reason, GOING_ON)
