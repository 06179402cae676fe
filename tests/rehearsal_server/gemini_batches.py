"""Gemini's batches of the rehearsal server, in memory; a batch is answered request by request when it is due."""

from __future__ import annotations

import json
import re
import threading
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from http import HTTPStatus
from typing import Any

from rehearsal_server.batches import Answer

_BATCH = re.compile(r"^/v1(?:beta)?/(?P<name>batches(?:/[^/]+)?)$")
_MAKE = re.compile(r"^/v1(?:beta)?/models/(?P<model>[^/:]+):batchGenerateContent$")
_CODES = {
    HTTPStatus.BAD_REQUEST: 3,
    HTTPStatus.TOO_MANY_REQUESTS: 8,
    HTTPStatus.SERVICE_UNAVAILABLE: 14,
    HTTPStatus.UNAUTHORIZED: 16,
}
"""google.rpc.Code of HTTP statuses."""
_DEADLINE_EXCEEDED, _INTERNAL = 4, 13


class GeminiBatches:
    """Batches whose requests came with them.

    Args:
        answer: answers one request.
        latency: seconds that a batch takes.
    """

    def __init__(self, answer: Answer, latency: float) -> None:
        self._answer, self._latency = answer, latency
        self._lock = threading.Lock()
        self._batches: dict[str, dict[str, Any]] = {}
        self._asked: dict[str, tuple[float, str, list[dict[str, Any]]]] = {}

    def __len__(self) -> int:
        return len(self._batches)

    def get(self, path: str) -> bytes | None:
        """Return the body of what is at `path`; None where there is nothing."""
        match = _BATCH.match(path)
        if match is None:
            return None
        with self._lock:
            if match["name"] == "batches":
                return _json({"operations": [self._state(name) for name in reversed(self._batches)]})
            return _json(self._state(match["name"])) if match["name"] in self._batches else None

    def post(self, path: str, content_type: str, raw: bytes) -> bytes | None:
        """Make a batch; return its description, None at other paths."""
        match = _MAKE.match(path)
        if match is None:
            return None
        batch = json.loads(raw)["batch"]
        with self._lock:
            name = f"batches/{len(self._batches)}"
            common = {"displayName": batch["displayName"], "createTime": datetime.now(UTC).isoformat()}
            self._batches[name] = {"name": name, "metadata": {**common, "state": "BATCH_STATE_RUNNING"}}
            due = time.monotonic() + self._latency
            self._asked[name] = (due, match["model"], batch["inputConfig"]["requests"]["requests"])
            return _json(self._batches[name])

    def _state(self, name: str) -> dict[str, Any]:
        batch, (due, model, requests) = self._batches[name], self._asked[name]
        if batch["metadata"]["state"] == "BATCH_STATE_RUNNING" and time.monotonic() >= due:
            answered = [self._answered(model, each) for each in requests]
            output = {"inlinedResponses": {"inlinedResponses": answered}}
            batch["metadata"] |= {"state": "BATCH_STATE_SUCCEEDED", "output": output}
        return batch

    def _answered(self, model: str, asked: Mapping[str, Any]) -> dict[str, Any]:
        common = {"metadata": asked.get("metadata")}
        answered = self._answer(f"/v1beta/models/{model}:generateContent", _json(asked["request"]))
        if answered is None:
            return {**common, "error": {"code": _DEADLINE_EXCEEDED, "message": "the model timed out"}}
        status, body = answered
        if status == HTTPStatus.OK:
            return {**common, "response": body}
        return {**common, "error": {"code": _CODES.get(status, _INTERNAL), "message": body["error"]["message"]}}


def _json(content: Any) -> bytes:
    return json.dumps(content).encode()
