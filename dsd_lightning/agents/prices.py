"""Prices of calls, of texts and of generated images: expected, and at most."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from dsd_lightning.agents.messages import Message

MILLION = 1_000_000
MESSAGE_TOKENS = 16
"""Upper bound of the tokens that mark a turn and its role."""
_CHARACTERS_PER_TOKEN = 4
"""Of English prose, roughly: for expectations, never for bounds."""
_SNAPSHOT = re.compile(r"-(?:\d{4}-\d{2}-\d{2}|\d{8}|\d{2}-\d{4}|\d{3,4}|latest)$")
"""What dates a model's name: gpt-4o-2024-11-20, claude-x-20250219, gemini-x-preview-05-2026, gemini-x-001."""


@dataclass(frozen=True)
class Price:
    """What one model costs, and where and when that was read."""

    model: str
    input_usd: float
    """USD a million tokens."""
    output_usd: float
    """USD a million tokens."""
    image_tokens: int = 4096
    """Upper bound of the tokens of one image, as the provider counts them."""
    source: str = "given"
    date: str = ""
    """YYYY-MM-DD on which the source said so."""
    images: Mapping[str, float] = field(default_factory=dict)
    """USD of one generated image, by what is asked for, such as {"1024x1024 medium": 0.053}."""

    def __post_init__(self) -> None:
        if self.images and (min(self.images.values()) <= 0 or self.output_usd <= 0):
            raise ValueError(f"price of {self.model}: generated images and their tokens (output_usd) must cost > 0")
        if min(self.input_usd, self.output_usd) < 0 or self.image_tokens < 1:
            raise ValueError(f"price of {self.model}: dollars must be >= 0 and image_tokens at least 1; got {self}")


@dataclass(frozen=True)
class Size:
    """Tokens of a call."""

    input_tokens: int
    output_tokens: int


class Prices:
    """A table of prices by model.

    Args:
        models: one price a model; mappings with its fields will do.
        given: the same, of models that the table lacks or has other prices of.
        free: every model costs nothing, as one's own server does.
        unknown_image_tokens: bound of an image's tokens for models that are not in the table.
        share: what is paid of the table's prices; batches cost half.
        image: which image a call generates, as the rows of `Price.images` name it, such as "1024x1024 medium"; None: calls
            answer with texts.

    Raises:
        ValueError: a negative price or share, or a price without its fields.
    """

    def __init__(
        self,
        models: Sequence[Any],
        free: bool = False,
        unknown_image_tokens: int = 4096,
        share: float = 1.0,
        image: str | None = None,
        given: Sequence[Any] = (),
    ) -> None:
        if share < 0:
            raise ValueError(f"prices.share={share}: what is paid of the table's prices, must be >= 0")
        prices = [each if isinstance(each, Price) else _price(each) for each in (*models, *given)]
        self._prices = {price.model: price for price in prices}
        self._free = free
        self._unknown_image_tokens = unknown_image_tokens
        self._share = share
        self._image = image

    def known(self, model: str) -> bool:
        """Return whether calls of `model` can be priced."""
        price = self._prices.get(model)
        return self._free or (price is not None and (self._image is None or self._image in price.images))

    def named(self, model: str) -> str:
        """Return what has or lacks a price: the model, or its image of one kind."""
        return model if self._image is None else f"{model} (image {self._image!r})"

    def origin(self, model: str) -> str:
        """Return where and when the price of `model` was read; "" where nothing is paid, or no price is known."""
        price = self._prices.get(model)
        return "" if self._free or price is None else " ".join(filter(None, (price.source, price.date)))

    def override(self, model: str) -> str:
        """Return the command line's argument that gives a model a price; of a dated name, with that of the undated one.

        Snapshots may cost other than the undated name does, so that nothing is assumed.
        """
        price = self._prices.get(_SNAPSHOT.sub("", model))
        costs = ("INPUT_USD", "OUTPUT_USD") if price is None else (price.input_usd, price.output_usd)
        images = "" if self._image is None else f", images: {{{self._image}: IMAGE_USD}}"
        return f"'agents.prices.given=[{{model: \"{model}\", input_usd: {costs[0]}, output_usd: {costs[1]}{images}}}]'"

    def cost(self, model: str, size: Size) -> float | None:
        """Return the USD that a call of `size` costs; None for a model without a price."""
        if self._free:
            return 0.0
        price = self._prices.get(model)
        if price is None:
            return None
        return self._share * (size.input_tokens * price.input_usd + size.output_tokens * price.output_usd) / MILLION

    def at_most(self, model: str, messages: Sequence[Message], max_output_tokens: int) -> Size:
        """Return a size that no call exceeds: a token holds at least one byte of the text."""
        characters = sum(len(message.text.encode()) for message in messages)
        return self._size(model, messages, characters, self._output(model, max_output_tokens))

    def expected(self, model: str, messages: Sequence[Message], output_tokens: int) -> Size:
        """Return the size to expect of a call that answers with `output_tokens`."""
        characters = sum(len(message.text) for message in messages)
        tokens = math.ceil(characters / _CHARACTERS_PER_TOKEN)
        return self._size(model, messages, tokens, self._output(model, output_tokens))

    def _output(self, model: str, tokens: int) -> int:
        """Return the tokens of an answer: those that a generated image is billed as, or `tokens`."""
        price = self._prices.get(model)
        if self._image is None or price is None or self._image not in price.images:
            return tokens
        return round(price.images[self._image] * MILLION / price.output_usd)

    def _size(self, model: str, messages: Sequence[Message], text_tokens: int, output_tokens: int) -> Size:
        price = self._prices.get(model)
        each = price.image_tokens if price is not None else self._unknown_image_tokens
        images = sum(not isinstance(part, str) for message in messages for part in message.parts)
        return Size(text_tokens + images * each + MESSAGE_TOKENS * len(messages), output_tokens)


def _price(fields: Any) -> Price:
    if not isinstance(fields, Mapping):
        raise ValueError(f"prices: {fields!r} is no price; give {{model: NAME, input_usd: USD, output_usd: USD}}")
    numbers = {name: fields.get(name) for name in ("input_usd", "output_usd")} | dict(fields.get("images", {}))
    for name, value in numbers.items():
        if isinstance(value, str):
            raise ValueError(f"price of {fields.get('model')}: {name}={value}: give the number in its place")
    try:
        return Price(**fields)
    except TypeError as error:
        raise ValueError(
            f"prices: {dict(fields)}: a price has model, input_usd and output_usd (USD a million tokens), and may have "
            f"image_tokens, images, source and date ({error})"
        ) from None
