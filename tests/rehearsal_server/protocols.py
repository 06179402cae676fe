"""Reads and writes the JSON of OpenAI's and Gemini's protocols."""

from __future__ import annotations

import base64
import re
from dataclasses import dataclass
from typing import Any

from rehearsal_server.grids import png, speckled_grid

OPENAI_IMAGES_PATH = re.compile(r"^(?:/v1)?/images/generations$")
OPENAI_PATH = re.compile(r"^(?:/v1)?/chat/completions$")
GEMINI_PATH = re.compile(r"^/v1(?:beta)?/models/(?P<model>[^/:]+):generateContent$")

IMAGE_TOKENS = 100
"""What the rehearsal server counts for an image that it is sent."""

GENERATED_TOKENS = 1000
"""What the rehearsal server counts for an image that it answers with."""

SIDE = 128
"""Pixels of the images that it answers with: few, so that tests are quick."""


@dataclass(frozen=True)
class Conversation:
    """What both protocols say, in one form."""

    protocol: str
    model: str
    turns: tuple[tuple[str, str], ...]
    images: tuple[bytes, ...]
    side: int | None = None
    """Pixels of the square image that is asked for; None: a text is."""

    @property
    def input_tokens(self) -> int:
        """Return the words and images, counted as tokens."""
        return sum(len(text.split()) for _, text in self.turns) + IMAGE_TOKENS * len(self.images)


def read(path: str, body: dict[str, Any]) -> Conversation | None:
    """Return the conversation of a request to `path`; None where no protocol has such a path."""
    if OPENAI_PATH.match(path):
        return _read_openai(body)
    if OPENAI_IMAGES_PATH.match(path):
        return Conversation("openai", body["model"], (("user", body["prompt"]),), (), SIDE)
    gemini = GEMINI_PATH.match(path)
    return _read_gemini(gemini["model"], body) if gemini else None


def _read_openai(body: dict[str, Any]) -> Conversation:
    turns, images = [], []
    for message in body["messages"]:
        content = message["content"]
        parts: list[dict[str, Any]] = [{"type": "text", "text": content}] if isinstance(content, str) else content
        turns.append((message["role"], "\n\n".join(part["text"] for part in parts if part["type"] == "text")))
        images += [
            base64.b64decode(part["image_url"]["url"].partition("base64,")[2])
            for part in parts
            if part["type"] == "image_url"
        ]
    return Conversation("openai", body["model"], tuple(turns), tuple(images))


def _read_gemini(model: str, body: dict[str, Any]) -> Conversation:
    turns, images = [], []
    system = body.get("systemInstruction")
    for content in ([{**system, "role": "system"}] if system else []) + body["contents"]:
        role = {"model": "assistant"}.get(content.get("role", "user"), content.get("role", "user"))
        turns.append((role, "\n\n".join(part["text"] for part in content["parts"] if "text" in part)))
        # google-genai writes the alphabet for URLs, protobuf the usual one.
        images += [
            base64.b64decode(part["inlineData"]["data"].replace("-", "+").replace("_", "/"))
            for part in content["parts"]
            if "inlineData" in part
        ]
    side = SIDE if "IMAGE" in body.get("generationConfig", {}).get("responseModalities", ()) else None
    return Conversation("gemini", model, tuple(turns), tuple(images), side)


def answer(conversation: Conversation, text: str, digest: str, *, refused: bool = False) -> dict[str, Any]:
    """Return the body of an answer, or of a refusal with the reason `text`; an image is drawn by the request's digest."""
    served, words = f"{conversation.model}-rehearsal", len(text.split())
    image = None
    if conversation.side is not None and not refused:
        drawn = speckled_grid(conversation.side, conversation.side, int(digest[:8], 16))
        image, words = base64.b64encode(png(drawn)).decode(), GENERATED_TOKENS
    if conversation.protocol == "openai" and conversation.side is not None:
        tokens = {"input_tokens": conversation.input_tokens, "output_tokens": words}
        details = {"text_tokens": conversation.input_tokens, "image_tokens": 0}
        usage = {**tokens, "total_tokens": sum(tokens.values()), "input_tokens_details": details}
        return {"created": 0, "data": [{"b64_json": image}], "output_format": "png", "usage": usage}
    if conversation.protocol == "openai":
        message = {"role": "assistant", "content": None if refused else text, "refusal": text if refused else None}
        return {
            "id": "rehearsal",
            "object": "chat.completion",
            "created": 0,
            "model": served,
            "choices": [{"index": 0, "message": message, "finish_reason": "stop", "logprobs": None}],
            "usage": {
                "prompt_tokens": conversation.input_tokens,
                "completion_tokens": words,
                "total_tokens": conversation.input_tokens + words,
            },
        }
    part = {"text": text} if image is None else {"inlineData": {"mimeType": "image/png", "data": image}}
    candidate = {"content": {"role": "model", "parts": [part]}, "finishReason": "STOP", "index": 0}
    return {
        **({"promptFeedback": {"blockReason": "SAFETY"}} if refused else {"candidates": [candidate]}),
        "modelVersion": served,
        "usageMetadata": {
            "promptTokenCount": conversation.input_tokens,
            "candidatesTokenCount": words,
            "totalTokenCount": conversation.input_tokens + words,
        },
    }


def refuses_by_error(conversation: Conversation) -> bool:
    """Return whether a filter answers by an error, as OpenAI's does to a prompt of an image."""
    return conversation.protocol == "openai" and conversation.side is not None


def error(conversation: Conversation, status: int, name: str, text: str) -> dict[str, Any]:
    """Return the body of an error: `name` is OpenAI's code or Google's status."""
    if conversation.protocol == "openai":
        return {"error": {"message": text, "type": name, "param": None, "code": name}}
    return {"error": {"code": status, "message": text, "status": name.upper()}}
