"""Calls Gemini through google-genai, Google's present library."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import httpx
from google import genai
from google.genai import errors, types

from dsd_lightning.agents.failures import (
    AgentFailure,
    ConnectionFailed,
    ProviderFailed,
    failure_of_status,
    retry_after_of,
)
from dsd_lightning.agents.messages import Finish, ImagePart, Message, Sampling
from dsd_lightning.agents.providers.keys import read_key, redacted
from dsd_lightning.agents.providers.provider import Remote, Reply

_ENDED_BY_ITSELF = ("STOP", "FINISH_REASON_UNSPECIFIED")
_RETRY_DELAY = re.compile(r"['\"]retryDelay['\"]: ['\"](\d+(?:\.\d+)?)s['\"]")


def finish_of(reason: str) -> Finish:
    """Return what Gemini's `finishReason` means; all but two mean that a filter refused."""
    if reason == "MAX_TOKENS":
        return "length"
    return "stop" if reason in _ENDED_BY_ITSELF else "refused"


def retry_delay_of(details: str) -> float | None:
    """Return the seconds of google.rpc.RetryInfo, with which Gemini accompanies a 429 instead of Retry-After."""
    delay = _RETRY_DELAY.search(details)
    return float(delay[1]) if delay else None


def failure_of(status: int, text: str, response: Any, details: str) -> AgentFailure:
    """Return the failure that Gemini's HTTP status stands for, and the wait that its headers or its details ask for."""
    wait = retry_after_of(getattr(response, "headers", None) or {})
    return failure_of_status(status, text, wait if wait is not None else retry_delay_of(details))


class Gemini(Remote):
    """The official `google-genai` library's async client; `base_url` is without the version.

    For example `https://generativelanguage.googleapis.com`; the other arguments are those of `Remote`.
    """

    kind = "gemini"
    errors = (errors.APIError, httpx.HTTPError, ValueError)

    def __init__(self, model: str, base_url: str, api_key_env: str | None, identity: str | None = None) -> None:
        super().__init__(model, base_url, api_key_env, identity)
        self._client: genai.Client | None = None
        self._http: httpx.AsyncClient | None = None

    def _connected(self, timeout_seconds: float) -> genai.Client:
        if self._client is None:
            self._key = read_key(self._api_key_env)
            # One named HTTP library, whose errors are listed above; the client would pick whichever is installed.
            self._http = httpx.AsyncClient(timeout=timeout_seconds)
            options = types.HttpOptions(
                base_url=self._base_url,
                httpx_async_client=self._http,
                retry_options=types.HttpRetryOptions(attempts=1),
            )
            self._client = genai.Client(api_key=self._key, vertexai=False, http_options=options)
        return self._client

    async def send(self, messages: Sequence[Message], sampling: Sampling, timeout_seconds: float) -> Reply:
        client = self._connected(timeout_seconds)
        contents, config = asked_of(messages, sampling)
        call = client.aio.models.generate_content(model=self.model, contents=contents, config=config)
        return reply_of(await self._result(call), self.model, wants_image(sampling))

    def _failure(self, error: Exception) -> AgentFailure:
        text = redacted(str(error), self._key)
        if isinstance(error, errors.APIError):
            return failure_of(error.code, text, error.response, details=text)
        if isinstance(error, httpx.HTTPError):
            return ConnectionFailed(f"{self._base_url}: {type(error).__name__}: {text}")
        return ProviderFailed(f"{self._base_url} sent no generateContent answer: {type(error).__name__}: {text}")

    async def close(self) -> None:
        if self._http is not None:
            await self._http.aclose()
        self._client = self._http = None


_RESOLUTIONS = {
    None: None,
    "auto": None,
    "low": types.MediaResolution.MEDIA_RESOLUTION_LOW,
    "high": types.MediaResolution.MEDIA_RESOLUTION_HIGH,
}
"""Of `Sampling.image_detail`."""


def wants_image(sampling: Sampling) -> bool:
    """Return whether `sampling.extra.response_modalities` asks for an image."""
    return "IMAGE" in sampling.extra.get("response_modalities", ())


def asked_of(messages: Sequence[Message], sampling: Sampling) -> tuple[Any, types.GenerateContentConfig]:
    """Return a conversation and its sampling as the library has them: contents, config."""
    system = [message.text for message in messages if message.role == "system"]
    config = types.GenerateContentConfig(
        system_instruction=system[0] if system else None,
        # An image cut short is none; what it costs is bounded by its price.
        max_output_tokens=None if wants_image(sampling) else sampling.max_output_tokens,
        temperature=sampling.temperature,
        top_p=sampling.top_p,
        seed=sampling.seed,
        media_resolution=_RESOLUTIONS[sampling.image_detail],
        **sampling.described().get("extra", {}),
    )
    return [_content(message) for message in messages if message.role != "system"], config


def _content(message: Message) -> types.Content:
    return types.Content(
        role="model" if message.role == "assistant" else "user",
        parts=[_part(part) for part in message.parts],
    )


def _part(part: str | ImagePart) -> types.Part:
    if isinstance(part, str):
        return types.Part.from_text(text=part)
    return types.Part.from_bytes(data=part.data, mime_type=part.media_type)


def reply_of(response: types.GenerateContentResponse, model: str, wants_image: bool = False) -> Reply:
    """Return the reply that a response holds: its text, or the image that it was asked for.

    Raises:
        ProviderFailed: it holds none.
    """
    usage = response.usage_metadata
    spoken = (usage.candidates_token_count, usage.thoughts_token_count) if usage else ()
    candidate = response.candidates[0] if response.candidates else None
    blocked = response.prompt_feedback.block_reason if response.prompt_feedback else None
    if candidate is None and blocked is None:
        raise ProviderFailed(f"an answer of {model} without candidates, which is no generateContent answer")
    parts = candidate.content.parts if candidate and candidate.content and candidate.content.parts else []
    text = "".join(part.text for part in parts if part.text and not part.thought)
    image = next((part.inline_data.data for part in parts if part.inline_data and not part.thought), None)
    reason = candidate.finish_reason.value if candidate and candidate.finish_reason else "STOP"
    # A model that generates images refuses in words, without one.
    refused = blocked is not None or (wants_image and not image)
    return Reply(
        text=f"blocked: {blocked.value}" if blocked else text,
        finish="refused" if refused else finish_of(reason),
        served_model=response.model_version or model,
        input_tokens=usage.prompt_token_count if usage else None,
        output_tokens=sum(count or 0 for count in spoken) if usage else None,
        image=image if wants_image else None,
    )
