"""What exists in the miniature world: the attributes of identities and of contexts.

An *identity* is what must survive from the reference to the target (shape, colours, pattern, accessory, face); a
*context* is what a caption may ask for (place, size, rotation, background, light, style). Both are tuples of indices
into the vocabularies below, so every scene has an exact, enumerable ground truth.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from typing import ClassVar, Protocol, runtime_checkable

PALETTE: dict[str, tuple[float, float, float]] = {
    "red": (0.84, 0.14, 0.16),
    "orange": (0.96, 0.53, 0.10),
    "yellow": (0.97, 0.87, 0.20),
    "green": (0.18, 0.62, 0.26),
    "blue": (0.16, 0.36, 0.86),
    "purple": (0.50, 0.22, 0.70),
    "pink": (0.97, 0.55, 0.74),
    "white": (0.97, 0.97, 0.95),
}
"""Colours of characters, sRGB in [0, 1]."""

BACKGROUND_PALETTE: dict[str, tuple[float, float, float]] = {
    "blue": (0.55, 0.72, 0.88),
    "green": (0.60, 0.78, 0.58),
    "yellow": (0.90, 0.85, 0.60),
    "pink": (0.90, 0.70, 0.74),
    "gray": (0.62, 0.62, 0.64),
    "brown": (0.62, 0.50, 0.40),
}
"""Colours of backgrounds, sRGB in [0, 1]; paler than any character's so that it stands out from the ground."""

SHAPES = ("circle", "square", "triangle", "star", "heart", "cross")
COLORS = tuple(PALETTE)
PATTERNS = ("stripes", "dots", "half", "rim")
ACCESSORIES = ("hat", "crown", "horns", "bow")
FACES = ("eyes", "cyclops", "glasses")

PLACES = ("center", "left", "right", "top", "bottom")
SIZES = ("large", "small")
ROTATIONS = ("upright", "left", "right")
BACKGROUND_KINDS = ("plain", "striped", "checkered")
BACKGROUND_COLORS = tuple(BACKGROUND_PALETTE)
LIGHT_DIRECTIONS = ("front", "left", "right", "above", "below")
LIGHT_COLORS = ("white", "warm", "cool")
STYLES = ("painted", "cartoon", "glossy")


@runtime_checkable
class Draw(Protocol):
    """A source of random integers: `numpy.random.Generator`, or anything with its `integers` method."""

    def integers(self, low: int, high: int) -> int:
        """Return one integer in [low, high)."""
        ...


@dataclass(frozen=True)
class _Attributes:
    """Indices into vocabularies, one a field, ordered as a mixed-radix number."""

    vocabulary: ClassVar[dict[str, tuple[str, ...]]]

    def __post_init__(self) -> None:
        for name, words in self.vocabulary.items():
            value = getattr(self, name)
            if not 0 <= value < len(words):
                raise ValueError(
                    f"{name}={value} is out of range; allowed are 0 to {len(words) - 1}: {', '.join(words)}"
                )

    def word(self, name: str) -> str:
        """Return the vocabulary word of the attribute `name`."""
        return self.vocabulary[name][getattr(self, name)]

    def words(self) -> dict[str, str]:
        """Return every attribute by name as its vocabulary word."""
        return {name: self.word(name) for name in self.vocabulary}

    def values(self) -> tuple[int, ...]:
        """Return every attribute's index, in the order of the fields."""
        return tuple(getattr(self, f.name) for f in fields(self))

    def differing(self, other: _Attributes) -> list[str]:
        """Return the names of the attributes in which `self` and `other` differ."""
        return [f.name for f in fields(self) if getattr(self, f.name) != getattr(other, f.name)]


@dataclass(frozen=True)
class Identity(_Attributes):
    """One character. `second_color` never equals `color`, so the pattern is always visible."""

    shape: int
    color: int
    second_color: int
    pattern: int
    accessory: int
    face: int

    vocabulary: ClassVar[dict[str, tuple[str, ...]]] = {
        "shape": SHAPES,
        "color": COLORS,
        "second_color": COLORS,
        "pattern": PATTERNS,
        "accessory": ACCESSORIES,
        "face": FACES,
    }

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.color == self.second_color:
            raise ValueError(f"color and second_color are both {COLORS[self.color]!r}; they must differ")

    @property
    def held_out(self) -> bool:
        """Whether this identity is kept from every training run (one in ten, by a fixed hash)."""
        digest = hashlib.sha256(repr(tuple(self.words().values())).encode()).digest()
        return digest[0] % 10 == 0


@dataclass(frozen=True)
class Context(_Attributes):
    """Everything about a scene but who is in it."""

    place: int
    size: int
    rotation: int
    background_kind: int
    background_color: int
    light_direction: int
    light_color: int
    style: int

    vocabulary: ClassVar[dict[str, tuple[str, ...]]] = {
        "place": PLACES,
        "size": SIZES,
        "rotation": ROTATIONS,
        "background_kind": BACKGROUND_KINDS,
        "background_color": BACKGROUND_COLORS,
        "light_direction": LIGHT_DIRECTIONS,
        "light_color": LIGHT_COLORS,
        "style": STYLES,
    }


@dataclass(frozen=True)
class Scene:
    """One character in one context: all that the renderer needs."""

    identity: Identity
    context: Context


COMMON_CONTEXT_ODDS = 0.5
"""Odds that rotation, light direction, light colour or style take their first, unspoken value."""

_OFTEN_DEFAULT = ("rotation", "light_direction", "light_color", "style")


def all_identities() -> Iterator[Identity]:
    """Yield every identity of the world once, in a fixed order."""
    for shape in range(len(SHAPES)):
        for color in range(len(COLORS)):
            for second in range(len(COLORS)):
                if second == color:
                    continue
                for pattern in range(len(PATTERNS)):
                    for accessory in range(len(ACCESSORIES)):
                        for face in range(len(FACES)):
                            yield Identity(shape, color, second, pattern, accessory, face)


def draw_identity(rng: Draw, held_out: bool | None = False) -> Identity:
    """Draw an identity uniformly from the training (False), held-out (True) or whole (None) world."""
    while True:
        color = int(rng.integers(0, len(COLORS)))
        second = (color + 1 + int(rng.integers(0, len(COLORS) - 1))) % len(COLORS)
        identity = Identity(
            shape=int(rng.integers(0, len(SHAPES))),
            color=color,
            second_color=second,
            pattern=int(rng.integers(0, len(PATTERNS))),
            accessory=int(rng.integers(0, len(ACCESSORIES))),
            face=int(rng.integers(0, len(FACES))),
        )
        if held_out is None or identity.held_out == held_out:
            return identity


def draw_context(rng: Draw) -> Context:
    """Draw a context; attributes that a caption leaves unsaid at their first value take it half of the time."""
    values = {}
    for name, words in Context.vocabulary.items():
        values[name] = int(rng.integers(0, len(words)))
        if name in _OFTEN_DEFAULT and rng.integers(0, 1000) < 1000 * COMMON_CONTEXT_ODDS:
            values[name] = 0
    return Context(**values)


def change_identity(identity: Identity, attribute: str, rng: Draw) -> Identity:
    """Return `identity` with exactly the one `attribute` replaced by another value."""
    current = getattr(identity, attribute)
    taken = {current}
    if attribute == "color":
        taken.add(identity.second_color)
    elif attribute == "second_color":
        taken.add(identity.color)
    free = [i for i in range(len(Identity.vocabulary[attribute])) if i not in taken]
    return replace(identity, **{attribute: free[int(rng.integers(0, len(free)))]})


def change_context(context: Context, attribute: str, rng: Draw) -> Context:
    """Return `context` with exactly the one `attribute` replaced by another value."""
    current = getattr(context, attribute)
    free = [i for i in range(len(Context.vocabulary[attribute])) if i != current]
    return replace(context, **{attribute: free[int(rng.integers(0, len(free)))]})


def share_light_and_style(context: Context, other: Context) -> Context:
    """Return `context` under the light and in the style of `other`, as the panels of one grid have them."""
    return replace(context, light_direction=other.light_direction, light_color=other.light_color, style=other.style)


def lights(context: Context) -> list[Context]:
    """Return `context` under every light, direction by direction and colour by colour."""
    return [
        replace(context, light_direction=direction, light_color=color)
        for direction in range(len(LIGHT_DIRECTIONS))
        for color in range(len(LIGHT_COLORS))
    ]


def change_light(context: Context, rng: Draw) -> Context:
    """Return `context` under another light, drawn uniformly from those that differ in direction, colour or both."""
    others = [other for other in lights(context) if other != context]
    return others[int(rng.integers(0, len(others)))]
