"""Calls Gemini through google-generativeai, the library that google-genai has succeeded.

Its last version is 0.8.6 and its support has ended. It is here for projects that are bound to it; `gemini` is the better
choice for everyone else.
"""

from __future__ import annotations

import asyncio
import warnings
from collections.abc import Sequence
from typing import Any

import requests
from google.protobuf import json_format

from dsd_lightning.agents.failures import AgentFailure, ConnectionFailed, ProviderFailed
from dsd_lightning.agents.messages import ImagePart, Message, Sampling
from dsd_lightning.agents.providers.gemini import failure_of, finish_of
from dsd_lightning.agents.providers.keys import read_key, redacted
from dsd_lightning.agents.providers.provider import Remote, Reply

with warnings.catch_warnings():
    warnings.simplefilter("ignore", FutureWarning)  # that its support has ended: the docstring says so
    from google.api_core import exceptions
    from google.generativeai.client import configure
    from google.generativeai.generative_models import GenerativeModel


class GeminiLegacy(Remote):
    """The former official library, over REST, in threads; the arguments are those of `Gemini`.

    The library keeps its key and address for the whole process: two agents on it must have the same.
    """

    kind = "gemini_legacy"
    errors = (exceptions.GoogleAPICallError, requests.RequestException, ValueError, json_format.ParseError)

    async def send(self, messages: Sequence[Message], sampling: Sampling, timeout_seconds: float) -> Reply:
        if not self._key:
            self._key = read_key(self._api_key_env)
            configure(api_key=self._key, transport="rest", client_options={"api_endpoint": self._base_url.rstrip("/")})
        system = [message.text for message in messages if message.role == "system"]
        model = GenerativeModel(self.model, system_instruction=system[0] if system else None)
        for name in ("seed", "image_detail"):
            if getattr(sampling, name) is not None:
                raise ValueError(f"sampling.{name}: google-generativeai cannot send one; leave it null, or use gemini")
        config = {
            "max_output_tokens": sampling.max_output_tokens,
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            **sampling.described().get("extra", {}),
        }
        contents = [_content(message) for message in messages if message.role != "system"]
        call = asyncio.to_thread(
            model.generate_content,
            contents,
            generation_config={name: value for name, value in config.items() if value is not None},  # type: ignore[arg-type]
            request_options={"timeout": timeout_seconds, "retry": None},  # type: ignore[arg-type]
        )
        return _reply(await self._result(call), self.model)

    def _failure(self, error: Exception) -> AgentFailure:
        text = redacted(str(error), self._key)
        # Of requests' errors only those of a body that is no JSON are not the connection's.
        if isinstance(error, requests.RequestException) and not isinstance(error, requests.exceptions.JSONDecodeError):
            return ConnectionFailed(f"{self._base_url}: {type(error).__name__}: {text}")
        if isinstance(error, exceptions.GoogleAPICallError) and error.code is not None:
            return failure_of(int(error.code), text, error.response, redacted(str(error.details), self._key))
        return ProviderFailed(f"{self._base_url} sent no generateContent answer: {type(error).__name__}: {text}")

    async def close(self) -> None:
        self._key = ""


def _content(message: Message) -> dict[str, Any]:
    return {
        "role": "model" if message.role == "assistant" else "user",
        "parts": [_part(part) for part in message.parts],
    }


def _part(part: str | ImagePart) -> str | dict[str, Any]:
    return part if isinstance(part, str) else {"mime_type": part.media_type, "data": part.data}


def _reply(response: Any, model: str) -> Reply:
    usage = response.usage_metadata
    blocked = response.prompt_feedback.block_reason
    if not response.candidates and not blocked:
        raise ProviderFailed(f"an answer of {model} without candidates, which is no generateContent answer")
    candidate = response.candidates[0] if response.candidates else None
    text = "".join(part.text for part in candidate.content.parts) if candidate else ""
    return Reply(
        text=f"blocked: {blocked.name}" if blocked else text,
        finish="refused"
        if blocked or candidate is None
        else finish_of(getattr(candidate.finish_reason, "name", "OTHER")),
        served_model=response.to_dict().get("model_version") or model,
        input_tokens=usage.prompt_token_count if usage else None,
        # The library does not know of thinking: what is neither prompt nor candidate in the total is thought.
        output_tokens=max(usage.candidates_token_count, usage.total_token_count - usage.prompt_token_count)
        if usage
        else None,
    )
