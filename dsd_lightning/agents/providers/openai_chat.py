"""Calls OpenAI's chat completions, and those of every server that speaks the protocol (vLLM, Ollama, ...)."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from typing import Any

import openai

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

_FINISHES: dict[str, Finish] = {"length": "length", "content_filter": "refused"}


class OpenAIChat(Remote):
    """The official `openai` library's async client.

    Args:
        base_url: with the version, as `https://api.openai.com/v1`.
        model, api_key_env, identity: as for `Remote`.
        max_tokens_field: what the server calls the longest answer; vLLM and Ollama know the older `max_tokens`.
    """

    kind = "openai"
    errors = (openai.OpenAIError, ValueError)

    def __init__(
        self,
        model: str,
        base_url: str,
        api_key_env: str | None,
        identity: str | None = None,
        max_tokens_field: str = "max_completion_tokens",
    ) -> None:
        if max_tokens_field not in ("max_completion_tokens", "max_tokens"):
            raise ValueError(
                f"provider.max_tokens_field={max_tokens_field!r}: choose max_completion_tokens or max_tokens"
            )
        super().__init__(model, base_url, api_key_env, identity)
        self._max_tokens_field = max_tokens_field
        self._client: openai.AsyncOpenAI | None = None

    def _connected(self) -> openai.AsyncOpenAI:
        if self._client is None:
            self._key = read_key(self._api_key_env)
            self._client = openai.AsyncOpenAI(api_key=self._key, base_url=self._base_url, max_retries=0)
        return self._client

    async def send(self, messages: Sequence[Message], sampling: Sampling, timeout_seconds: float) -> Reply:
        client = self._connected()
        body = self._body(messages, sampling)
        extra = sampling.described().get("extra", {})
        call = client.chat.completions.create(**body, extra_body=extra, timeout=timeout_seconds)
        return reply_of(await self._result(call), self.model)

    def _body(self, messages: Sequence[Message], sampling: Sampling) -> dict[str, Any]:
        body: dict[str, Any] = {
            "model": self.model,
            "messages": [_message(message, sampling.image_detail) for message in messages],
            self._max_tokens_field: sampling.max_output_tokens,
        }
        for name in ("temperature", "top_p", "seed"):
            if getattr(sampling, name) is not None:
                body[name] = getattr(sampling, name)
        return body

    def _failure(self, error: Exception) -> AgentFailure:
        text = redacted(str(error), self._key)
        if isinstance(error, openai.APIStatusError):
            return failure_of_status(error.status_code, text, retry_after_of(error.response.headers))
        if isinstance(error, openai.APIConnectionError):
            cause = type(error.__cause__).__name__ if error.__cause__ is not None else type(error).__name__
            return ConnectionFailed(f"{self._base_url}: {text} ({cause})")
        return ProviderFailed(f"{self._base_url} sent no chat completion: {type(error).__name__}: {text}")

    async def close(self) -> None:
        if self._client is not None:
            await self._client.close()
            self._client = None


def _message(message: Message, detail: str | None) -> dict[str, Any]:
    if message.role != "user":
        return {"role": message.role, "content": message.text}
    return {"role": "user", "content": [_part(part, detail) for part in message.parts]}


def _part(part: str | ImagePart, detail: str | None) -> dict[str, Any]:
    if isinstance(part, str):
        return {"type": "text", "text": part}
    url = f"data:{part.media_type};base64,{base64.b64encode(part.data).decode()}"
    return {"type": "image_url", "image_url": {"url": url} if detail is None else {"url": url, "detail": detail}}


def reply_of(completion: Any, model: str) -> Reply:
    """Return the reply that a chat completion holds.

    Raises:
        ProviderFailed: it holds none.
    """
    # The library does not check what it parses: a server's own words may stand where choices should.
    choices = getattr(completion, "choices", None)
    choice = choices[0] if choices else None
    message = getattr(choice, "message", None)
    if choice is None or message is None:
        raise ProviderFailed(f"an answer of {model} without choices, which is no chat completion")
    refusal = getattr(message, "refusal", None)
    usage = completion.usage
    return Reply(
        text=refusal or message.content or "",
        finish="refused" if refusal else _FINISHES.get(choice.finish_reason, "stop"),
        served_model=completion.model or model,
        input_tokens=usage.prompt_tokens if usage else None,
        output_tokens=usage.completion_tokens if usage else None,
    )
