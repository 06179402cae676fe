"""Receives, counts, and answers or fails requests over a real socket."""

from __future__ import annotations

import hashlib
import json
import socket
import struct
import threading
import time
from collections import Counter
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any

from rehearsal_server import protocols
from rehearsal_server.batches import Batches
from rehearsal_server.gemini_batches import GeminiBatches
from rehearsal_server.script import NONSENSE, Asked, Fault, Rule

_STATUS_FAULTS = {
    "rate_limited": (HTTPStatus.TOO_MANY_REQUESTS, "rate_limit_exceeded", "too many requests"),
    "quota": (HTTPStatus.TOO_MANY_REQUESTS, "insufficient_quota", "insufficient_quota: the account is empty"),
    "unauthorized": (HTTPStatus.UNAUTHORIZED, "invalid_api_key", "Incorrect API key provided: {key}"),
    "rejected": (HTTPStatus.BAD_REQUEST, "invalid_request_error", "no rule of the script answers this"),
    "unavailable": (HTTPStatus.SERVICE_UNAVAILABLE, "unavailable", "overloaded"),
}
_BLOCKED = (HTTPStatus.BAD_REQUEST, "moderation_blocked", "Your request was rejected by the safety system.")
"""By which OpenAI refuses to generate an image."""
_SHOWN = 80


class Counts:
    """How often was what asked, answered and failed?"""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._asked: Counter[str] = Counter()
        self._answered: Counter[str] = Counter()
        self._faults: Counter[str] = Counter()
        self._texts: dict[str, str] = {}
        self._at_once = self._most_at_once = 0

    def ask(self, digest: str, text: str) -> tuple[int, int]:
        """Count a request; return its number among all and among its equals."""
        with self._lock:
            self._asked[digest] += 1
            self._texts[digest] = text
            self._at_once += 1
            self._most_at_once = max(self._most_at_once, self._at_once)
            return self._asked.total(), self._asked[digest]

    def answer(self, digest: str) -> None:
        """Count an answer of which every byte was sent."""
        with self._lock:
            self._answered[digest] += 1

    def fail(self, fault: str) -> None:
        """Count a failure that was asked for."""
        with self._lock:
            self._faults[fault] += 1

    def leave(self) -> None:
        """Count that a request is no longer under way."""
        with self._lock:
            self._at_once -= 1

    def as_json(self) -> dict[str, Any]:
        """Return all counts; of each request its digest and the start of its last turn."""
        with self._lock:
            return {
                "asked": self._asked.total(),
                "answered": self._answered.total(),
                "under_way": self._at_once,
                "most_at_once": self._most_at_once,
                "faults": dict(self._faults),
                "requests": [
                    {"digest": each, "text": self._texts[each][:_SHOWN], "asked": n, "answered": self._answered[each]}
                    for each, n in self._asked.items()
                ],
            }


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Sockets

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing: counts are read over HTTP."""

    def do_GET(self) -> None:
        """Answer /counts, and what is asked of files and batches."""
        answer = self._batches().get(self.path.partition("?")[0])
        if self.path == "/counts":
            self._send(HTTPStatus.OK, json.dumps(self.server.report()).encode())
        elif answer is not None:
            self._send(HTTPStatus.OK, answer)
        else:
            self._send(HTTPStatus.NOT_FOUND, b'{"error": {"message": "GET /counts, or POST to a protocol"}}')

    def do_POST(self) -> None:
        """Answer a request of either protocol, by the script; or take a file, or a batch."""
        raw = self.rfile.read(int(self.headers["Content-Length"]))
        path = self.path.partition("?")[0]
        taken = self._batches().post(path, self.headers.get("Content-Type", ""), raw)
        if taken is not None:
            self._send(HTTPStatus.OK, taken)
            return
        conversation = protocols.read(path, json.loads(raw))
        if conversation is None:
            self._send(HTTPStatus.NOT_FOUND, b'{"error": {"message": "no such path", "code": 404}}')
            return
        try:
            digest, said = self.server.ask(path, raw, conversation)
            time.sleep(self.server.latency)
            self._react(conversation, digest, said)
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True  # whoever asked is gone
        finally:
            self.server.counts.leave()

    def _batches(self) -> Batches | GeminiBatches:
        # Both providers have a path /v1/batches; the header of the key tells them apart.
        return self.server.gemini_batches if "x-goog-api-key" in self.headers else self.server.batches

    def _react(self, conversation: protocols.Conversation, digest: str, said: str | Fault) -> None:
        if isinstance(said, str):
            self._answer(protocols.answer(conversation, said, digest), digest)
            return
        self.server.counts.fail(said.fault)
        if said.fault in _STATUS_FAULTS:
            status, name, text = _STATUS_FAULTS[said.fault]
            body = protocols.error(conversation, status, name, text.format(key=self._key()))
            headers = {"Retry-After": f"{said.retry_after:g}"} if said.fault == "rate_limited" else {}
            self._send(status, json.dumps(body).encode(), headers)
        elif said.fault == "reset":
            self._reset()
        elif said.fault == "malformed":
            self._send(HTTPStatus.OK, b'{"hello": "world"}')
        elif said.fault == "refusal" and protocols.refuses_by_error(conversation):
            self._send(_BLOCKED[0], json.dumps(protocols.error(conversation, *_BLOCKED)).encode())
        elif said.fault == "refusal":
            self._answer(protocols.answer(conversation, "I cannot help with that.", digest, refused=True), digest)
        elif said.fault == "nonsense":
            self._answer(protocols.answer(conversation, NONSENSE, digest), digest)
        else:
            self._crawl(protocols.answer(conversation, NONSENSE, digest), said)

    def _key(self) -> str:
        bearer = self.headers.get("Authorization", "").removeprefix("Bearer ")
        return bearer or self.headers.get("x-goog-api-key", "")

    def _answer(self, body: dict[str, Any], digest: str) -> None:
        self._send(HTTPStatus.OK, json.dumps(body).encode())
        self.server.counts.answer(digest)

    def _send(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        self._head(status, len(body), headers or {})
        self.wfile.write(body)

    def _head(self, status: int, length: int, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {"Content-Type": "application/json", "Content-Length": str(length), **headers}.items():
            self.send_header(name, value)
        self.end_headers()

    def _crawl(self, body: dict[str, Any], fault: Fault) -> None:
        """Send a head, and then the body late, or half of it."""
        raw = json.dumps(body).encode()
        self._head(HTTPStatus.OK, len(raw), {})
        self.wfile.write(raw[: len(raw) // 2])
        if fault.fault == "slow":
            time.sleep(fault.seconds)
            self.wfile.write(raw[len(raw) // 2 :])
        self.close_connection = True

    def _reset(self) -> None:
        # Lingering for 0 seconds makes the close a reset (RST) instead of an orderly end (FIN).
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.rfile.close()
        self.connection.close()
        self.close_connection = True


class _Sockets(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 256

    def __init__(self, address: tuple[str, int], rule: Rule, latency: float) -> None:
        super().__init__(address, _Handler)
        self.rule = rule
        self.latency = latency
        self.counts = Counts()
        self.batches = Batches(self._line, latency)
        self.gemini_batches = GeminiBatches(self._line, latency)

    def report(self) -> dict[str, Any]:
        """Return all counts, with the number of batches."""
        return {**self.counts.as_json(), "batches": len(self.batches) + len(self.gemini_batches)}

    def ask(self, path: str, raw: bytes, conversation: protocols.Conversation) -> tuple[str, str | Fault]:
        """Count a request, and ask the script; return its digest and what the script says."""
        digest = hashlib.sha256(path.encode() + raw).hexdigest()
        number, repeat = self.counts.ask(digest, conversation.turns[-1][1])
        turns, images = conversation.turns, conversation.images
        asked = Asked(conversation.protocol, conversation.model, turns, images, digest, number, repeat)
        return digest, self.rule(asked)

    def _line(self, path: str, raw: bytes) -> tuple[HTTPStatus, dict[str, Any]] | None:
        """Answer a line of a batch."""
        conversation = protocols.read(path, json.loads(raw))
        if conversation is None:
            return HTTPStatus.NOT_FOUND, {"error": {"message": f"no such path: {path}"}}
        digest, said = self.ask(path, raw, conversation)
        self.counts.leave()
        if isinstance(said, str):
            self.counts.answer(digest)
            return HTTPStatus.OK, protocols.answer(conversation, said, digest)
        self.counts.fail(said.fault)
        if said.fault in _STATUS_FAULTS:
            status, name, text = _STATUS_FAULTS[said.fault]
            return status, protocols.error(conversation, status, name, text)
        if said.fault == "refusal" and protocols.refuses_by_error(conversation):
            return _BLOCKED[0], protocols.error(conversation, *_BLOCKED)
        in_words = {"refusal": ("I cannot help with that.", True), "nonsense": (NONSENSE, False)}
        if said.fault in in_words:
            text, refused = in_words[said.fault]
            return HTTPStatus.OK, protocols.answer(conversation, text, digest, refused=refused)
        return (HTTPStatus.OK, {"hello": "world"}) if said.fault == "malformed" else None


class RehearsalServer:
    """The server, on this machine only.

    Args:
        rule: the script; a callable may fail by returning a `Fault`.
        port: 0 takes a free one.
        latency: seconds before each answer or fault.
    """

    def __init__(self, rule: Rule, port: int = 0, latency: float = 0.0) -> None:
        self._sockets = _Sockets(("127.0.0.1", port), rule, latency)

    @property
    def url(self) -> str:
        """Return the address: Gemini's `base_url`; OpenAI's is this and `/v1`."""
        return f"http://127.0.0.1:{self._sockets.server_address[1]}"

    @property
    def counts(self) -> dict[str, Any]:
        """Return what GET /counts returns."""
        return self._sockets.report()

    def settle(self, seconds: float = 60) -> None:
        """Wait until no request is under way, as after its sender was killed."""
        deadline = time.monotonic() + seconds
        while self.counts["under_way"]:
            if time.monotonic() > deadline:
                raise TimeoutError(f"requests are under way for {seconds:g} s: {self.counts}")
            time.sleep(0.02)

    def serve(self) -> None:
        """Serve until the process is stopped."""
        self._sockets.serve_forever()

    def __enter__(self) -> RehearsalServer:
        threading.Thread(target=self._sockets.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._sockets.shutdown()
        self._sockets.server_close()
