"""The contract of a provider: it sends one conversation once; everything around that is the agent's."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Sequence
from dataclasses import dataclass
from typing import ClassVar, Protocol, TypeVar, runtime_checkable
from urllib.parse import urlsplit

from dsd_lightning.agents.failures import AgentFailure
from dsd_lightning.agents.messages import Finish, Message, Sampling

Result = TypeVar("Result")

# One line a request would drown the log of a run of many thousands.
for _chatty in ("httpx", "httpx2", "openai", "google_genai"):
    logging.getLogger(_chatty).setLevel(logging.WARNING)


@dataclass(frozen=True)
class Reply:
    """A provider's answer, before its price and its key are known."""

    text: str
    finish: Finish
    served_model: str
    input_tokens: int | None
    """None where the provider did not report it."""
    output_tokens: int | None
    image: bytes | None = None
    """The file of a generated image."""


@runtime_checkable
class Provider(Protocol):
    """A model behind an API, or a stand-in for one.

    Libraries' own retries are off: the agent retries, so that each try counts against its limits and its budget.
    """

    model: str
    identity: str
    """Part of the cache key: whose model it is. Answers of a rehearsal must never pass for the real ones."""

    async def send(self, messages: Sequence[Message], sampling: Sampling, timeout_seconds: float) -> Reply:
        """Send a conversation once.

        Raises:
            AgentFailure: of the kind that fits, without the key in its message. A refusal is a `Reply`, not a failure:
                it is an answer, and is remembered.
        """
        ...

    async def close(self) -> None:
        """Close connections."""
        ...


@runtime_checkable
class BatchProvider(Protocol):
    """A provider that answers many requests together, hours later; the agent calls this instead of `send`."""

    async def send_as(self, key: str, messages: Sequence[Message], sampling: Sampling) -> Reply:
        """Send a conversation once, in a batch; by the cache key `key` the same request is recognised after a kill.

        Raises:
            AgentFailure: as `Provider.send` does.
        """
        ...


class Remote:
    """What providers behind a URL share: a model's name, an address, the key, and how a library's errors are named.

    Args:
        model: name that the server knows.
        base_url: as the provider's library wants it.
        api_key_env: environment variable that holds the key; None for a server that needs none.
        identity: name in cache keys; None takes the host and port. Give one where a model moves between hosts.
    """

    kind: ClassVar[str]
    errors: ClassVar[tuple[type[Exception], ...]]
    """What the provider's library raises."""

    def __init__(self, model: str, base_url: str, api_key_env: str | None, identity: str | None = None) -> None:
        self.model = model
        by_host = identity_of(self.kind, base_url)  # refuses what is no URL, although a name is given
        self.identity = identity or by_host
        self._base_url = base_url
        self._api_key_env = api_key_env
        self._key = ""  # read when the first request is sent: a dry run and a run from the cache need none

    async def _result(self, call: Awaitable[Result]) -> Result:
        """Return the result of a library's call; its errors become failures."""
        try:
            return await call
        except self.errors as error:
            failure = self._failure(error)
        # Not in the handler: the library's error would stay its context, and repeat the key where the server did.
        raise failure

    def _failure(self, error: Exception) -> AgentFailure:
        """Return the failure that one of `errors` stands for."""
        raise NotImplementedError

    async def close(self) -> None:
        """Close connections."""


def identity_of(kind: str, base_url: str | None) -> str:
    """Return `kind@host`, with the port where the URL names one, which keeps services' answers apart in the cache.

    Raises:
        ValueError: no URL with a host.
    """
    parts = urlsplit(base_url or "")
    host = parts.hostname
    if host is None:
        raise ValueError(f"provider.base_url={base_url!r}: no URL with a host, such as http://127.0.0.1:8000/v1")
    return f"{kind}@{host}" + (f":{parts.port}" if parts.port else "")
