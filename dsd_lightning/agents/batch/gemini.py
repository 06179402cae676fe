"""Calls Gemini in batch mode: requests are sent together and answered within a day, at half the price."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from google.genai import types

from dsd_lightning.agents.batch.folder import Batch
from dsd_lightning.agents.batch.gathering import Ended
from dsd_lightning.agents.batch.remote import CLOCKS_DIFFER, LISTED, TIMEOUT, BatchRemote
from dsd_lightning.agents.failures import AgentFailure, ProviderFailed, failure_of_status
from dsd_lightning.agents.messages import Message, Sampling
from dsd_lightning.agents.providers.gemini import Gemini, asked_of, reply_of, wants_image
from dsd_lightning.agents.providers.keys import redacted
from dsd_lightning.agents.providers.provider import Reply

_KEY = "key"
"""Metadata of a request in which the provider keeps its key."""
_ENDED = ("SUCCEEDED", "PARTIALLY_SUCCEEDED", "FAILED", "CANCELLED", "EXPIRED")
_STATUS = {3: 400, 5: 404, 7: 403, 8: 429, 9: 400, 16: 401}
"""HTTP statuses of google.rpc.Code; every other code is the provider's failure."""
_SERVER_ERROR = 500


class GeminiBatch(BatchRemote, Gemini):
    """`Gemini` in batches of up to 20 MB: the same questions, answers and cache keys. Requests travel in the batch itself."""

    async def send_as(self, key: str, messages: Sequence[Message], sampling: Sampling) -> Reply:
        """Send in a batch; see `BatchProvider`."""
        self._connected(TIMEOUT)
        line = await self._line(key, lambda: _request(key, messages, sampling))
        return reply_of(
            types.GenerateContentResponse.model_validate_json(json.dumps(line["response"])),
            self.model,
            wants_image(sampling),
        )

    async def submit(self, batch: Batch, requests: bytes) -> str:
        """Make a batch of `requests`; return its name at the provider."""
        asked = [json.dumps(json.loads(line)["request"]) for line in requests.splitlines()]
        inlined: Any = [types.InlinedRequest.model_validate_json(each) for each in asked]
        create = self._connected(TIMEOUT).aio.batches.create
        job = await self._result(create(model=self.model, src=inlined, config={"display_name": batch.name}))
        if job.name is None:
            raise ProviderFailed(f"{self._base_url} sent a batch without a name")
        return job.name

    async def find(self, batch: Batch) -> str | None:
        """Return the provider's name of the batch that bears ours; None if there is none as young as it must be."""
        return await self._result(self._search(batch))

    async def _search(self, batch: Batch) -> str | None:
        async for job in await self._connected(TIMEOUT).aio.batches.list(config={"page_size": LISTED}):
            if job.display_name == batch.name:
                return job.name
            if job.create_time is not None and job.create_time.timestamp() < batch.made - CLOCKS_DIFFER:
                break
        return None

    async def ended(self, batch: Batch) -> Ended | None:
        """Return the outcome of a batch, a line a request; None while it is under way."""
        assert batch.id is not None
        job = await self._result(self._connected(TIMEOUT).aio.batches.get(name=batch.id))
        state = job.state.value.removeprefix("JOB_STATE_") if job.state is not None else ""
        if state not in _ENDED:
            return None
        answered = (job.dest.inlined_responses if job.dest is not None else None) or []
        # An answer bears its request's key; where it should not, answers come in the order of the requests.
        paired = zip(batch.keys, answered, strict=False)
        lines = [_answered((each.metadata or {}).get(_KEY, key), each) for key, each in paired]
        failure = ProviderFailed(f"batch {batch.id} is {state.lower()}, without an answer to this request")
        return Ended(b"".join(lines), failure)

    def failure_of(self, line: dict[str, Any]) -> AgentFailure | None:
        """Return why a line holds no answer; None where it does."""
        if line["response"] is not None:
            return None
        error = line["error"] or {}
        code = int(error.get("code") or 0)
        text = redacted(str(error.get("message")), self._key)
        return failure_of_status(_STATUS.get(code, _SERVER_ERROR), f"in a batch: code {code}: {text}")


def _request(key: str, messages: Sequence[Message], sampling: Sampling) -> bytes:
    contents, config = asked_of(messages, sampling)
    request = types.InlinedRequest(contents=contents, config=config, metadata={_KEY: key})
    asked = request.model_dump(mode="json", exclude_none=True)
    return json.dumps({"custom_id": key, "request": asked}).encode() + b"\n"


def _answered(key: str, each: types.InlinedResponse) -> bytes:
    response = each.response.model_dump(mode="json", exclude_none=True) if each.response is not None else None
    error = each.error.model_dump(mode="json") if each.error is not None else None
    return json.dumps({"custom_id": key, "response": response, "error": error}).encode() + b"\n"
