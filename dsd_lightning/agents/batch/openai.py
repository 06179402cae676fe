"""Calls OpenAI's Batch API: requests are uploaded together and answered within a day, at half the price."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, ClassVar, Literal

from openai.types import ImagesResponse
from openai.types.chat import ChatCompletion

from dsd_lightning.agents.batch.folder import Batch
from dsd_lightning.agents.batch.gathering import Ended
from dsd_lightning.agents.batch.remote import CLOCKS_DIFFER, LISTED, TIMEOUT, BatchRemote
from dsd_lightning.agents.failures import AgentFailure, ProviderFailed, QuotaExhausted, failure_of_status
from dsd_lightning.agents.messages import Message, Sampling
from dsd_lightning.agents.providers.keys import redacted
from dsd_lightning.agents.providers.openai_chat import OpenAIChat, reply_of
from dsd_lightning.agents.providers.openai_images import OpenAIImages, image_of
from dsd_lightning.agents.providers.provider import Reply

Endpoint = Literal["/v1/chat/completions", "/v1/images/generations"]
_NAME = "dsd_batch"
"""Metadata in which the provider keeps our name of a batch."""
_ENDED = ("completed", "failed", "expired", "cancelled")
_OK, _REJECTED, _TOO_MANY = 200, 400, 429
_QUOTA_CODES = ("insufficient_quota", "billing_hard_limit_reached")


class OpenAIBatch(BatchRemote, OpenAIChat):
    """`OpenAIChat` in batches of up to 50 000 requests and 200 MB: the same questions, answers and cache keys."""

    endpoint: ClassVar[Endpoint] = "/v1/chat/completions"

    async def send_as(self, key: str, messages: Sequence[Message], sampling: Sampling) -> Reply:
        """Send in a batch; see `BatchProvider`."""
        self._connected()
        line = await self._line(key, lambda: self._request(key, messages, sampling))
        return self._reply(line["response"]["body"])

    def _reply(self, body: dict[str, Any]) -> Reply:
        return reply_of(ChatCompletion.construct(**body), self.model)

    def _request(self, key: str, messages: Sequence[Message], sampling: Sampling) -> bytes:
        body = {**self._body(messages, sampling), **sampling.described().get("extra", {})}
        return json.dumps({"custom_id": key, "method": "POST", "url": self.endpoint, "body": body}).encode() + b"\n"

    async def submit(self, batch: Batch, requests: bytes) -> str:
        """Upload `requests` and make a batch of them; return its id."""
        client = self._connected()
        named = (f"{batch.name}.jsonl", requests)
        file = await self._result(client.files.create(file=named, purpose="batch", timeout=TIMEOUT))
        created = await self._result(
            client.batches.create(
                input_file_id=file.id,
                endpoint=self.endpoint,
                completion_window="24h",
                metadata={_NAME: batch.name},
                timeout=TIMEOUT,
            )
        )
        return created.id

    async def find(self, batch: Batch) -> str | None:
        """Return the id of the batch that bears our name; None if there is none as young as it must be."""
        page = await self._result(self._connected().batches.list(limit=LISTED, timeout=TIMEOUT))
        while True:
            for each in page.data:
                if (each.metadata or {}).get(_NAME) == batch.name:
                    return each.id
                if each.created_at < batch.made - CLOCKS_DIFFER:
                    return None
            if not page.has_next_page():
                return None
            page = await self._result(page.get_next_page())

    async def ended(self, batch: Batch) -> Ended | None:
        """Return the outcome of a batch, both of its files in one; None while it is under way."""
        assert batch.id is not None
        client = self._connected()
        state = await self._result(client.batches.retrieve(batch.id, timeout=TIMEOUT))
        if state.status not in _ENDED:
            return None
        files = [file for file in (state.output_file_id, state.error_file_id) if file is not None]
        parts = [(await self._result(client.files.content(file, timeout=TIMEOUT))).content for file in files]
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


class OpenAIImagesBatch(OpenAIBatch, OpenAIImages):
    """`OpenAIImages` in batches: the same prompts, images and cache keys."""

    endpoint: ClassVar[Endpoint] = "/v1/images/generations"

    async def send_as(self, key: str, messages: Sequence[Message], sampling: Sampling) -> Reply:
        return await self.or_refusal(super().send_as(key, messages, sampling))

    def _reply(self, body: dict[str, Any]) -> Reply:
        return image_of(ImagesResponse.construct(**body), self.model)
