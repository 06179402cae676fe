"""Requests to a model and its answers: texts and images, sampling parameters, cost."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import Any, Literal

from PIL import Image

Role = Literal["system", "user", "assistant"]
Finish = Literal["stop", "length", "refused"]
"""Why an answer ended: by itself, at `max_output_tokens`, or because the provider would not give it."""

_SIGNATURES = {b"\x89PNG": "image/png", b"\xff\xd8\xff": "image/jpeg", b"RIFF": "image/webp"}


@dataclass(frozen=True)
class ImagePart:
    """The bytes of a png, jpg or webp file."""

    data: bytes = field(repr=False)

    def __post_init__(self) -> None:
        if not any(self.data.startswith(signature) for signature in _SIGNATURES):
            raise ValueError(f"{len(self.data)} bytes are no png, jpg or webp; ImagePart.of(image) encodes a PIL image")

    @classmethod
    def of(cls, image: Image.Image) -> ImagePart:
        """Return `image` as a png, without loss. Equal pixels give equal bytes, so equal cache keys."""
        buffer = io.BytesIO()
        image.convert("RGB").save(buffer, "PNG")
        return cls(buffer.getvalue())

    @property
    def media_type(self) -> str:
        """Return the file's MIME type."""
        return next(kind for signature, kind in _SIGNATURES.items() if self.data.startswith(signature))

    @cached_property
    def sha256(self) -> str:
        """Return the hex digest by which cache keys and records name this image."""
        return hashlib.sha256(self.data).hexdigest()


@dataclass(frozen=True)
class Message:
    """One turn of a conversation: texts and images, in the order in which the model sees them."""

    role: Role
    parts: tuple[str | ImagePart, ...]

    def __post_init__(self) -> None:
        if not self.parts:
            raise ValueError(f"a {self.role} message without any text or image")
        if self.role != "user" and any(isinstance(part, ImagePart) for part in self.parts):
            raise ValueError(f"an image in a {self.role} message: images go into user messages")

    @classmethod
    def system(cls, text: str) -> Message:
        """Return standing instructions; only as the first message."""
        return cls("system", (text,))

    @classmethod
    def user(cls, *parts: str | ImagePart) -> Message:
        """Return a turn of the asker."""
        return cls("user", parts)

    @classmethod
    def assistant(cls, text: str) -> Message:
        """Return a turn of the model: one it gave, or one that the asker puts into its mouth."""
        return cls("assistant", (text,))

    @property
    def text(self) -> str:
        """Return the texts, a blank line between two."""
        return "\n\n".join(part for part in self.parts if isinstance(part, str))

    def described(self) -> dict[str, Any]:
        """Return this message as JSON has it, images named by their sha256."""
        parts = [part if isinstance(part, str) else {"image": part.sha256} for part in self.parts]
        return {"role": self.role, "parts": parts}


DETAILS = ("low", "high", "auto")
"""Values of `Sampling.image_detail`."""


@dataclass(frozen=True)
class Sampling:
    """How an answer is sampled. What is None is left to the provider's default, and not sent."""

    max_output_tokens: int = 1024
    """Longest answer, with the tokens of its thinking; bounds what a call can cost."""
    temperature: float | None = None
    """>= 0; several reasoning models refuse any."""
    top_p: float | None = None
    """In (0, 1]."""
    seed: int | None = None
    """For providers that sample reproducibly, or nearly so."""
    image_detail: str | None = None
    """low, high or auto: how closely images are read, where the provider lets one choose."""
    extra: Mapping[str, Any] = field(default_factory=dict)
    """Parameters of one provider, as its API names them, such as `reasoning_effort`."""

    def __post_init__(self) -> None:
        if self.max_output_tokens < 1:
            raise ValueError(f"sampling.max_output_tokens={self.max_output_tokens}: at least 1")
        if self.temperature is not None and self.temperature < 0:
            raise ValueError(f"sampling.temperature={self.temperature}: must be >= 0, or null for the default")
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise ValueError(f"sampling.top_p={self.top_p}: must be in (0, 1], or be null for the default")
        if self.image_detail not in (None, *DETAILS):
            raise ValueError(
                f"sampling.image_detail={self.image_detail!r}: {', '.join(DETAILS)}, or null for the default"
            )

    def described(self) -> dict[str, Any]:
        """Return the parameters that are set, as plain JSON."""
        values = {name: value for name, value in asdict(self).items() if value not in (None, {})}
        plain: dict[str, Any] = json.loads(json.dumps(values, sort_keys=True))
        return plain


@dataclass(frozen=True)
class Request:
    """A conversation that ends with the user's turn, to be answered once."""

    messages: tuple[Message, ...]
    sampling: Sampling | None = None
    """None takes the agent's."""
    attempt: int = 0
    """Which answer to the same words is meant: equal attempts share a cached answer, others are sent again."""

    def __post_init__(self) -> None:
        roles = [message.role for message in self.messages]
        if not roles or roles[-1] != "user" or "system" in roles[1:]:
            raise ValueError(f"a request of {roles}: it must end with user, and only its first message may be system")
        if self.attempt < 0:
            raise ValueError(f"attempt={self.attempt}: must be >= 0")

    @classmethod
    def of(cls, *parts: str | ImagePart, system: str | None = None, attempt: int = 0) -> Request:
        """Return a request of one user turn, with or without standing instructions."""
        opening = (Message.system(system),) if system is not None else ()
        return cls((*opening, Message.user(*parts)), attempt=attempt)


@dataclass(frozen=True)
class Answer:
    """A model's answer, and its tokens and cost."""

    text: str
    finish: Finish
    model: str
    """The name that was asked for."""
    served_model: str
    """The name that the provider says has answered, often a dated snapshot."""
    input_tokens: int
    output_tokens: int
    """With the tokens of thinking, which are billed alike."""
    cost_usd: float | None
    """None where the model's price is not known. The cost of the first asking, also when it comes from the cache."""
    key: str
    """Cache key; records can refer to the answer by it."""
    cached: bool
    """Whether it was on disk already, so that no call was made."""
    image: bytes | None = field(default=None, repr=False)
    """The file of the image that a model which generates images answered with."""
