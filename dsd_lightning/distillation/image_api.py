"""A teacher behind an API: OpenAI's and Gemini's image models, within the cache, limits and budget of an agent."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from dsd_lightning.agents import Agent, AgentFailure, Answer, Request
from dsd_lightning.agents.estimate import Estimate
from dsd_lightning.agents.many import for_each
from dsd_lightning.distillation.records import DistillationError


class ImageApi:
    """An image model that is paid by the image.

    These models take no noise, so a seed only tells the images of one prompt apart: the same prompt and seed name the same
    stored answer, and no image is generated or paid twice.

    Args:
        agent: sends the prompts; its provider answers with images.
        height, width: of a grid as the agent's sampling asks for it, pixels.
        licence: fields `license`, `license_name`, `license_link` of the terms that bind the images.

    Raises:
        DistillationError: a size below 1.
    """

    def __init__(self, agent: Agent, height: int, width: int, licence: Mapping[str, str]) -> None:
        if min(height, width) < 1:
            raise DistillationError(f"agents.teacher: height={height} and width={width} must be at least 1")
        self.agent, self.height, self.width = agent, height, width
        self._licence = dict(licence)

    def settings(self) -> Mapping[str, Any]:
        """Return what determines the images, as plain JSON."""
        return {**self.agent.settings(), "size": [self.height, self.width]}

    def licence(self) -> Mapping[str, str]:
        """Return the model's name and the licence fields of the provider's terms."""
        return {"teacher": self.agent.model, **self._licence}

    def generate(self, prompts: Sequence[str], seeds: Sequence[int]) -> list[Answer | AgentFailure]:
        """Return the answer for each prompt, its image with it, or why there is none.

        Raises:
            AgentFailure: one that every further prompt would meet as well (budget, quota, key).
        """
        wanted = [Request.of(prompt, attempt=seed) for prompt, seed in zip(prompts, seeds, strict=True)]
        return for_each(self.agent, wanted, self.agent.ask)

    def expected(self, prompt: str) -> Estimate:
        """Return what the image of a prompt like this one is expected to cost; makes no call."""
        return self.agent.dry_run([Request.of(prompt)])

    def close(self) -> None:
        """Close the agent's connections."""
        self.agent.close()
