"""OpenAI's files and batches of the rehearsal server, in memory; a batch is answered line by line when it is due."""

from __future__ import annotations

import json
import re
import threading
import time
from collections.abc import Callable, Mapping
from email import message_from_bytes
from http import HTTPStatus
from typing import Any

FILES, BATCHES = "/v1/files", "/v1/batches"
_CONTENT = re.compile(rf"^{FILES}/(?P<file>[^/]+)/content$")
_BATCH = re.compile(rf"^{BATCHES}/(?P<batch>[^/]+)$")

Answer = Callable[[str, bytes], "tuple[HTTPStatus, dict[str, Any]] | None"]
"""Answers a request to a path; None where the connection would have been broken."""


class Batches:
    """Files and batches.

    Args:
        answer: answers one line.
        latency: seconds that a batch takes.
    """

    def __init__(self, answer: Answer, latency: float) -> None:
        self._answer, self._latency = answer, latency
        self._lock = threading.Lock()
        self._files: dict[str, bytes] = {}
        self._batches: dict[str, dict[str, Any]] = {}
        self._due: dict[str, float] = {}

    def __len__(self) -> int:
        return len(self._batches)

    def get(self, path: str) -> bytes | None:
        """Return the body of what is at `path`; None where there is nothing."""
        with self._lock:
            if path == BATCHES:
                listed = [self._state(name) for name in reversed(self._batches)]
                return _json({"object": "list", "data": listed, "has_more": False})
            if content := _CONTENT.match(path):
                return self._files.get(content["file"])
            batch = _BATCH.match(path)
            return _json(self._state(batch["batch"])) if batch and batch["batch"] in self._batches else None

    def post(self, path: str, content_type: str, raw: bytes) -> bytes | None:
        """Take a file, or make a batch of one; return its description, None at other paths."""
        with self._lock:
            if path == FILES:
                return _json(self._file(_uploaded(content_type, raw), "batch"))
            return _json(self._make(json.loads(raw))) if path == BATCHES else None

    def _file(self, content: bytes, purpose: str) -> dict[str, Any]:
        name = f"file-{len(self._files)}"
        self._files[name] = content
        common = {"id": name, "bytes": len(content), "created_at": int(time.time()), "filename": f"{name}.jsonl"}
        return {**common, "object": "file", "purpose": purpose, "status": "processed"}

    def _make(self, asked: Mapping[str, Any]) -> dict[str, Any]:
        name = f"batch_{len(self._batches)}"
        common = {key: asked.get(key) for key in ("endpoint", "input_file_id", "completion_window", "metadata")}
        self._batches[name] = {
            **common,
            "id": name,
            "object": "batch",
            "created_at": int(time.time()),
            "status": "in_progress",
            "output_file_id": None,
            "error_file_id": None,
            "errors": None,
        }
        self._due[name] = time.monotonic() + self._latency
        return self._batches[name]

    def _state(self, name: str) -> dict[str, Any]:
        batch = self._batches[name]
        if batch["status"] == "in_progress" and time.monotonic() >= self._due[name]:
            lines = [self._answered(json.loads(line)) for line in self._files[batch["input_file_id"]].splitlines()]
            good = [line for line in lines if (line["response"] or {}).get("status_code") == HTTPStatus.OK]
            for kind, some in (("output", good), ("error", [line for line in lines if line not in good])):
                if some:
                    content = b"".join(_json(line) + b"\n" for line in some)
                    batch[f"{kind}_file_id"] = self._file(content, "batch_output")["id"]
            batch["status"] = "completed"
        return batch

    def _answered(self, line: Mapping[str, Any]) -> dict[str, Any]:
        common: dict[str, Any] = {"id": f"line_{line['custom_id']}", "custom_id": line["custom_id"]}
        answered = self._answer(line["url"], _json(line["body"]))
        if answered is None:
            return {**common, "response": None, "error": {"code": "request_timeout", "message": "the model timed out"}}
        status, body = answered
        return {**common, "response": {"status_code": status, "request_id": "rehearsal", "body": body}, "error": None}


def _uploaded(content_type: str, raw: bytes) -> bytes:
    """Return the file of a form (multipart/form-data)."""
    form = message_from_bytes(b"Content-Type: " + content_type.encode() + b"\r\n\r\n" + raw)
    parts = [part for part in form.walk() if part.get_filename() is not None]
    content = parts[0].get_payload(decode=True)
    assert isinstance(content, bytes)
    return content


def _json(content: Any) -> bytes:
    return json.dumps(content).encode()
