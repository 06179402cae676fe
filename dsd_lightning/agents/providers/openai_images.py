"""Calls OpenAI's image generation, and that of servers that speak the protocol: a prompt becomes one image."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Awaitable, Sequence
from typing import Any

import openai

from dsd_lightning.agents.failures import AgentFailure, ProviderFailed, RequestRejected
from dsd_lightning.agents.messages import ImagePart, Message, Sampling
from dsd_lightning.agents.providers.keys import redacted
from dsd_lightning.agents.providers.openai_chat import OpenAIChat
from dsd_lightning.agents.providers.provider import Reply

_BLOCKED = ("moderation_blocked", "content_policy_violation")
"""Codes of the error 400 by which a filter refuses a prompt or the image made of it."""


class OpenAIImages(OpenAIChat):
    """`images.generate` of the official `openai` library; the arguments are those of `OpenAIChat`.

    `sampling.extra` holds the image's parameters as the API names them: `size`, `quality`, `background`, ... The API has no
    seed and no bound of tokens, so the rest of `sampling` is not sent.
    """

    async def send(self, messages: Sequence[Message], sampling: Sampling, timeout_seconds: float) -> Reply:
        client = self._connected()
        extra = sampling.described().get("extra", {})
        call = client.images.generate(**self._body(messages, sampling), extra_body=extra, timeout=timeout_seconds)
        return await self.or_refusal(self._image(call))

    def _body(self, messages: Sequence[Message], sampling: Sampling) -> dict[str, Any]:
        return {"model": self.model, "prompt": "\n\n".join(message.text for message in messages), "n": 1}

    async def _image(self, call: Awaitable[Any]) -> Reply:
        return image_of(await self._result(call), self.model)

    async def or_refusal(self, call: Awaitable[Reply]) -> Reply:
        """Return the reply of `call`; a filter's error is a refusal, which is an answer."""
        try:
            return await call
        except RequestRejected as failure:
            if not any(code in str(failure) for code in _BLOCKED):
                raise
            return Reply(str(failure), "refused", self.model, 0, 0)

    def _failure(self, error: Exception) -> AgentFailure:
        code = error.code if isinstance(error, openai.APIStatusError) else None
        if code in _BLOCKED:  # the library's text does not repeat the code
            return RequestRejected(f"{code}: {redacted(str(error), self._key)}")
        return super()._failure(error)


def image_of(response: Any, model: str) -> Reply:
    """Return the reply that an answer of `images/generations` holds.

    Raises:
        ProviderFailed: it holds no image.
    """
    images = getattr(response, "data", None)
    encoded = getattr(images[0], "b64_json", None) if images else None
    if not encoded:
        raise ProviderFailed(f"an answer of {model} without data[0].b64_json, which is no image generation")
    try:
        image = ImagePart(base64.b64decode(encoded, validate=True)).data
    except (binascii.Error, ValueError) as error:
        raise ProviderFailed(f"an answer of {model} whose data is no image: {error}") from None
    usage = response.usage
    return Reply(
        text="",
        finish="stop",
        served_model=model,
        input_tokens=usage.input_tokens if usage else None,
        output_tokens=usage.output_tokens if usage else None,
        image=image,
    )
