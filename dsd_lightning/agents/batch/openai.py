"""How is OpenAI's Batch API asked? Chat completions that are uploaded together and answered within a day, at half the price."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Sequence
from typing import Any, Final, TypeVar

import openai
from openai.types.chat import ChatCompletion

from dsd_lightning.agents.batch.folder import Batch
from dsd_lightning.agents.batch.gathering import Ended, Gatherer, Gathering
from dsd_lightning.agents.failures import AgentFailure, ProviderFailed, QuotaExhausted, failure_of_status
from dsd_lightning.agents.messages import Message, Sampling
from dsd_lightning.agents.providers.keys import redacted
from dsd_lightning.agents.providers.openai_chat import OpenAIChat, reply_of
from dsd_lightning.agents.providers.provider import Reply

Result = TypeVar("Result")

_ENDPOINT: Final = "/v1/chat/completions"
_NAME = "dsd_batch"
"""Metadata in which the provider keeps our name of a batch."""
_ENDED = ("completed", "failed", "expired", "cancelled")
_OK, _REJECTED, _TOO_MANY = 200, 400, 429
_QUOTA_CODES = ("insufficient_quota", "billing_hard_limit_reached")
_TIMEOUT = 600.0
"""Seconds for one upload, look or download."""
_CLOCKS_DIFFER = 3600.0
"""Seconds by which the provider's clock may be behind ours."""
_LISTED = 100
"""Batches a page."""


class OpenAIBatch(OpenAIChat):
    """`OpenAIChat` in batches: the same questions, answers and cache keys.

    Args:
        batches: how they are gathered; OpenAI takes 50 000 requests and 200 MB in one.
        model, base_url, api_key_env, identity, max_tokens_field: as for `OpenAIChat`.
    """

    def __init__(
        self,
        model: str,
        base_url: str,
        api_key_env: str | None,
        batches: Gathering,
        identity: str | None = None,
        max_tokens_field: str = "max_completion_tokens",
    ) -> None:
        super().__init__(model, base_url, api_key_env, identity, max_tokens_field)
        self._batches = batches
        self._gatherer: Gatherer | None = None

    async def send_as(self, key: str, messages: Sequence[Message], sampling: Sampling) -> Reply:
        """Ask in a batch; see `BatchProvider`."""
        self._connected()
        if self._gatherer is None:
            self._gatherer = Gatherer(self, self._batches)
        line = await self._gatherer.answer(key, lambda: self._line(key, messages, sampling))
        return reply_of(ChatCompletion.construct(**line["response"]["body"]), self.model)

    def _line(self, key: str, messages: Sequence[Message], sampling: Sampling) -> bytes:
        body = {**self._body(messages, sampling), **sampling.described().get("extra", {})}
        return json.dumps({"custom_id": key, "method": "POST", "url": _ENDPOINT, "body": body}).encode() + b"\n"

    async def submit(self, batch: Batch, requests: bytes) -> str:
        """Upload `requests` and make a batch of them; return its id."""
        client = self._connected()
        named = (f"{batch.name}.jsonl", requests)
        file = await self._asked(client.files.create(file=named, purpose="batch", timeout=_TIMEOUT))
        made = await self._asked(
            client.batches.create(
                input_file_id=file.id,
                endpoint=_ENDPOINT,
                completion_window="24h",
                metadata={_NAME: batch.name},
                timeout=_TIMEOUT,
            )
        )
        return made.id

    async def find(self, batch: Batch) -> str | None:
        """Return the id of the batch that bears our name; None if there is none as young as it must be."""
        page = await self._asked(self._connected().batches.list(limit=_LISTED, timeout=_TIMEOUT))
        while True:
            for each in page.data:
                if (each.metadata or {}).get(_NAME) == batch.name:
                    return each.id
                if each.created_at < batch.made - _CLOCKS_DIFFER:
                    return None
            if not page.has_next_page():
                return None
            page = await self._asked(page.get_next_page())

    async def ended(self, batch: Batch) -> Ended | None:
        """Return what came of a batch, both of its files in one; None while it is under way."""
        assert batch.id is not None
        client = self._connected()
        state = await self._asked(client.batches.retrieve(batch.id, timeout=_TIMEOUT))
        if state.status not in _ENDED:
            return None
        files = [file for file in (state.output_file_id, state.error_file_id) if file is not None]
        parts = [(await self._asked(client.files.content(file, timeout=_TIMEOUT))).content for file in files]
        return Ended(b"\n".join(parts), self._failure_of_batch(state))

    def failure_of(self, line: dict[str, Any]) -> AgentFailure | None:
        """Return why a line of either file holds no answer; None where it does."""
        response = line.get("response")
        if response is None:
            return ProviderFailed(f"in a batch: {redacted(str(line.get('error')), self._key)}")
        if response["status_code"] == _OK:
            return None
        return failure_of_status(response["status_code"], redacted(str(response.get("body")), self._key))

    def _failure_of_batch(self, state: Any) -> AgentFailure:
        errors = (state.errors.data or []) if state.errors is not None else []
        codes = {each.code for each in errors}
        said = "; ".join(f"{each.code}: {each.message}" for each in errors) or "it has no line for this request"
        message = redacted(f"batch {state.id} is {state.status}: {said}", self._key)
        if codes & set(_QUOTA_CODES):
            return QuotaExhausted(message)
        if "token_limit_exceeded" in codes:  # of all batches that wait; there is room when some have ended
            return failure_of_status(_TOO_MANY, message)
        return failure_of_status(_REJECTED, message) if state.status == "failed" else ProviderFailed(message)

    async def _asked(self, work: Awaitable[Result]) -> Result:
        try:
            return await work
        except (openai.OpenAIError, ValueError) as error:
            failure = self._failure(error)
        raise failure  # not in the handler: the library's error would stay its context

    async def close(self) -> None:
        if self._gatherer is not None:
            await self._gatherer.close()
            self._gatherer = None
        await super().close()
