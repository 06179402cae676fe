"""What becomes of users' texts before the model reads them?"""

from __future__ import annotations

import logging
from collections.abc import Sequence

from hydra.utils import instantiate
from PIL import Image

from dsd_lightning.agents import Agent, AuthenticationFailed, ImagePart, Request
from dsd_lightning.generation.jobs import Job, one_line
from dsd_lightning.generation.llm_calls import NoAnswer, ask_each, find_settings, instruction, line_of
from dsd_lightning.images.pixels import load_rgb
from dsd_lightning.pipeline.inputs import fit

log = logging.getLogger(__name__)

GOING_ON = "going on with your prompt as it is"

SEEN = 512
"""Short side of the reference image that a language model is shown, pixels."""


def enhanced(jobs: Sequence[Job], chosen: Sequence[str] | None, miniature: bool) -> list[str]:
    """Return the prompts to draw from: enhanced by a language model, or the users' own, and then that is said.

    Args:
        jobs: their texts and reference images.
        chosen: see `asking.find_agent`.
        miniature: the shipped miniature draws, which knows the words of its own world alone: nobody is asked unless
            `chosen` says so.
    """
    own = [one_line(job.text) for job in jobs]
    try:
        settings = find_settings(chosen)
    except AuthenticationFailed as failure:
        log.warning(
            "prompt enhancement has no key for a language model (%s): %s (--disable_gemini_prompt says that this is meant)",
            failure,
            GOING_ON,
        )
        return own
    if miniature and not chosen:
        log.warning(
            "the shipped miniature knows the words of its own world alone, which no enhancement would keep to: %s "
            "(--agents NAME asks all the same)",
            GOING_ON,
        )
        return own
    agent: Agent = instantiate(settings)
    with agent:
        return enhance(agent, [shown(load_rgb(job.image), job.size) for job in jobs], own)


def shown(reference: Image.Image, size: tuple[int, int] | None) -> Image.Image:
    """Return what the model will see of a reference in frames of `size` (height, width), at a size for language models."""
    height, width = size or (1, 1)
    scale = SEEN / min(height, width)
    return fit(reference, round(height * scale), round(width * scale))


def enhance(agent: Agent, references: Sequence[Image.Image], texts: Sequence[str]) -> list[str]:
    """Return each text merged with what its reference shows, asking twice: for a caption, then to merge the two.

    As the official code: the user's wishes first, the rest from the caption. Where no answer comes, the text stays as it is,
    and a warning says why. Equal references are captioned once.
    """
    captions = ask_each(agent, [Request.of(instruction("caption"), ImagePart.of(image)) for image in references])
    prompts = list(texts)
    asked: dict[int, Request] = {}
    for index, (text, answer) in enumerate(zip(texts, captions, strict=True)):
        try:
            asked[index] = Request.of(instruction("merge", prompt=text, caption=line_of(answer)))
        except NoAnswer as reason:
            _warn(index, len(texts), reason)
    for index, answer in zip(asked, ask_each(agent, list(asked.values())), strict=True):
        try:
            prompts[index] = line_of(answer)
        except NoAnswer as reason:
            _warn(index, len(texts), reason)
    return prompts


def _warn(index: int, count: int, reason: NoAnswer) -> None:
    which = f" of job {index + 1}" if count > 1 else ""
    log.warning("the prompt%s was not enhanced (%s): %s", which, reason, GOING_ON)
