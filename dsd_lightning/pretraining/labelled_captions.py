"""Captions of the miniature world with what they say, attribute by attribute: the text encoders' training data."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np

from dsd_lightning.miniature import captions
from dsd_lightning.miniature.world import Context, Identity, Scene, draw_context, draw_identity

KINDS = ("full", "target", "instruction", "relighting", "grid")
PANELS = 4
IGNORED = -100
ATTRIBUTES = {**Identity.vocabulary, **Context.vocabulary}
PANEL_ATTRIBUTES = ("place", "size", "rotation", "background_kind", "background_color")
_LIGHT = ("light_direction", "light_color")


@dataclass(frozen=True)
class LabelledCaption:
    """A caption, the attribute values it states, and for grids those that each panel states."""

    text: str
    stated: dict[str, int]
    panels: list[dict[str, int]] = field(default_factory=list)

    def labels(self) -> list[int]:
        """Return one class per attribute, the last of which is "unsaid"; a grid's own placement is ignored."""
        ignored = PANEL_ATTRIBUTES if self.panels else ()
        return [IGNORED if name in ignored else self.stated.get(name, len(v)) for name, v in ATTRIBUTES.items()]

    def panel_labels(self) -> list[list[int]]:
        """Return [panels, attributes] classes as `labels`, all ignored where the caption is not of a grid."""
        if not self.panels:
            return [[IGNORED] * len(PANEL_ATTRIBUTES)] * PANELS
        return [[panel.get(name, len(ATTRIBUTES[name])) for name in PANEL_ATTRIBUTES] for panel in self.panels]


def _stated(context: Context, names: tuple[str, ...] = tuple(Context.vocabulary)) -> dict[str, int]:
    """Return those of the attributes `names` that a description of `context` says."""
    unsaid = {name for name in ("rotation", "style") if getattr(context, name) == 0}
    if not captions.lighting(context):
        unsaid.update(_LIGHT)
    return {name: getattr(context, name) for name in names if name not in unsaid}


def draw_caption(kind: str, rng: np.random.Generator, held_out: bool = False) -> LabelledCaption:
    """Draw a caption of one of `KINDS`, of a training or of a held-out identity."""
    identity, context = draw_identity(rng, held_out=held_out), draw_context(rng)
    who = {name: getattr(identity, name) for name in Identity.vocabulary}
    if kind == "full":
        return LabelledCaption(captions.full_caption(Scene(identity, context), rng), {**who, **_stated(context)})
    if kind == "target":
        return LabelledCaption(captions.target_caption(context, rng), _stated(context))
    if kind == "relighting":
        lit = {name: getattr(context, name) for name in _LIGHT}
        return LabelledCaption(captions.relighting_caption(context, rng), lit)
    if kind == "instruction":
        reference = draw_context(rng)
        names = set(reference.differing(context))
        for pair in (_LIGHT, ("background_kind", "background_color")):
            names.update(pair if names & set(pair) else ())
        return LabelledCaption(
            captions.instruction(reference, context, rng), {name: getattr(context, name) for name in names}
        )
    if kind != "grid":
        raise ValueError(f"unknown kind of caption {kind!r}; choose one of {', '.join(KINDS)}")
    shared = {name: getattr(context, name) for name in (*_LIGHT, "style")}
    contexts = [context] + [replace(draw_context(rng), **shared) for _ in range(PANELS - 1)]
    named = rng.random() < 0.7
    return LabelledCaption(
        captions.grid_caption(identity if named else None, contexts, rng),
        {**(who if named else {}), **_stated(context, (*_LIGHT, "style"))},
        [_stated(each, PANEL_ATTRIBUTES) for each in contexts],
    )
