"""Plain-English captions of the miniature world, several templates each.

A *target caption* tells the context and never the identity ("this character, large, on the right, ..."): only the
reference image can. A *full caption* tells both (single images of the base model's pretraining); a *depth caption* is
a full one without size, place and rotation, which only the depth map can tell; a *relighting caption* tells the new light
alone; a *grid caption* describes four panels of one character. Attributes at their first, unspoken value (upright, front
light, white light, painted) are not mentioned.
"""

from __future__ import annotations

from collections.abc import Sequence

from dsd_lightning.miniature.world import Context, Draw, Identity, Scene

_PLACE = {
    "center": "in the center",
    "left": "on the left",
    "right": "on the right",
    "top": "at the top",
    "bottom": "at the bottom",
}
_PATTERN = {"stripes": "stripes", "dots": "dots", "half": "half", "rim": "rim"}
_FACE = {"eyes": "two eyes", "cyclops": "one eye", "glasses": "glasses"}

_TARGET_OPENINGS = ("this character", "the same character", "the character", "a picture of this character")
_INSTRUCTION_OPENINGS = ("change the picture", "edit this picture", "show this character", "draw the same character")
_FULL_OPENINGS = ("", "a picture of ", "the character is ", "")


def _choose(options: Sequence[str], rng: Draw) -> str:
    return options[int(rng.integers(0, len(options)))]


def placement(context: Context) -> list[str]:
    """Return the phrases for size, place and rotation."""
    phrases = [context.word("size"), _PLACE[context.word("place")]]
    if context.word("rotation") != "upright":
        phrases.append(f"tilted {context.word('rotation')}")
    return phrases


def backdrop(context: Context) -> str:
    """Return the phrase for the background."""
    return f"on a {context.word('background_kind')} {context.word('background_color')} background"


def lighting(context: Context) -> str:
    """Return the phrase for light direction and colour; empty for white light from the front."""
    direction, color = context.word("light_direction"), context.word("light_color")
    if direction == "front" and color == "white":
        return ""
    if direction == "front":
        return f"in {color} light"
    source = direction if direction in ("above", "below") else f"the {direction}"
    return f"{color} light from {source}" if color != "white" else f"light from {source}"


def style(context: Context) -> str:
    """Return the phrase for the style; empty for painted."""
    return "" if context.word("style") == "painted" else f"{context.word('style')} style"


def surroundings(context: Context) -> list[str]:
    """Return every spoken phrase of a context but size, place and rotation."""
    return [phrase for phrase in (backdrop(context), lighting(context), style(context)) if phrase]


def context_phrases(context: Context) -> list[str]:
    """Return every spoken phrase of a context, in the order of the templates."""
    return [*placement(context), *surroundings(context)]


def subject(identity: Identity) -> str:
    """Return the noun phrase that tells an identity."""
    word = identity.word
    return (
        f"a {word('color')} {word('shape')} with {word('second_color')} {_PATTERN[word('pattern')]}, "
        f"a {word('accessory')} and {_FACE[word('face')]}"
    ).replace("a horns", "horns")


def target_caption(context: Context, rng: Draw) -> str:
    """Return a caption that describes the target's context and never who is in it."""
    phrases = context_phrases(context)
    if rng.integers(0, 2):
        phrases = [phrases[-1], *phrases[:-1]] if len(phrases) > 3 else phrases
    return ", ".join([_choose(_TARGET_OPENINGS, rng), *phrases])


def instruction(reference: Context, target: Context, rng: Draw) -> str:
    """Return an edit of the reference that leads to the target, naming all that must change and may be seen."""
    changed = set(reference.differing(target))
    phrases: list[str] = []
    if "size" in changed:
        phrases.append("larger" if target.word("size") == "large" else "smaller")
    if "place" in changed:
        phrases.append(_PLACE[target.word("place")])
    if "rotation" in changed:
        rotation = target.word("rotation")
        phrases.append("upright" if rotation == "upright" else f"tilted {rotation}")
    if changed & {"background_kind", "background_color"}:
        phrases.append(backdrop(target))
    if changed & {"light_direction", "light_color"}:
        phrases.append(lighting(target) or "in white light from the front")
    if "style" in changed:
        phrases.append(f"{target.word('style')} style")
    if not phrases:
        return _choose(_INSTRUCTION_OPENINGS, rng) + " again, unchanged"
    return ", ".join([_choose(_INSTRUCTION_OPENINGS, rng), *phrases])


def full_caption(scene: Scene, rng: Draw) -> str:
    """Return a caption that tells both who and where."""
    return _choose(_FULL_OPENINGS, rng) + ", ".join([subject(scene.identity), *context_phrases(scene.context)])


def depth_caption(scene: Scene, rng: Draw) -> str:
    """Return a caption of what a depth map does not show, and of who is in it; never of size, place or rotation."""
    return _choose(_FULL_OPENINGS, rng) + ", ".join([subject(scene.identity), *surroundings(scene.context)])


def relighting_caption(context: Context, rng: Draw) -> str:
    """Return a caption of the new light alone."""
    light = lighting(context) or "in white light from the front"
    return _choose(("the same scene", "this scene", "relight the scene"), rng) + ", " + light


def grid_caption(
    identity: Identity | None, contexts: Sequence[Context], rng: Draw, described: Sequence[bool] = (True,) * 4
) -> str:
    """Return the caption of a 2 x 2 grid; without an identity it says only that all four show one character.

    The panels come row by row; of those that are not `described` nothing stands between the semicolons. Light and style are
    stated once, since they are shared within a grid.
    """
    who = subject(identity) if identity is not None else "one character"
    shared = ", ".join(phrase for phrase in (lighting(contexts[0]), style(contexts[0])) if phrase)
    panels = [
        ", ".join([*placement(context), backdrop(context)]) if said else ""
        for context, said in zip(contexts, described, strict=True)
    ]
    opening = _choose(("a grid of four pictures of", "a grid of"), rng)
    return "; ".join([f"{opening} {who}" + (f", {shared}" if shared else ""), *panels])
