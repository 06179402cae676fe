"""Describes panels by the grid prompt that asked for them, where no model can look."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from dsd_lightning.agents import Answer
from dsd_lightning.distillation.records import DIRECTIONS, SIDES, Record, Rejection
from dsd_lightning.distillation.rules import OPENING, Words

_UPRIGHT = "upright"


class PromptDescriber:
    """Takes the words of listed grid prompts (`words.quadrants: listed`): "a grid of WHO, SHARED; PANEL; PANEL; ...".

    Captions never name the subject: "this character, PANEL, SHARED"; only the reference shows it.
    """

    looks_at: tuple[str, ...] = ()

    def settings(self) -> Mapping[str, Any]:
        """Return what decides its words."""
        return {"describer": "prompt"}

    def describe(self, pairs: Sequence[Record], words: Words) -> list[tuple[dict[str, Any], list[Answer]] | Rejection]:
        """Return the words of each pair."""
        return [self._describe(pair, words) for pair in pairs]

    def _describe(self, pair: Record, words: Words) -> tuple[dict[str, Any], list[Answer]] | Rejection:
        head, *panels = (part.strip() for part in pair.values["prompt"].split(";"))
        shared = head.removeprefix(OPENING).partition(pair.values["subject"])[2].strip(" ,")
        phrases = {side: panels[number].split(", ") for side, number in zip(SIDES, pair.values["panels"], strict=True)}
        captions = {
            side: ", ".join(["this character", *own, *([shared] if shared else [])]) for side, own in phrases.items()
        }
        instructions = {
            target: ", ".join(["show this character", *_changes(phrases[reference], phrases[target])])
            for reference, target in DIRECTIONS
        }
        for text in (*captions.values(), *instructions.values()):
            if (rule := words.broken_by_caption(text)) is not None:
                return Rejection(pair, "caption_breaks_rules", f"{rule}: {text}")
        return {"captions": captions, "instructions": instructions}, []

    def close(self) -> None:
        """Nothing to give back."""


def _changes(before: Sequence[str], after: Sequence[str]) -> list[str]:
    """Return the phrases that are new, in the wording of the miniature's instructions."""
    comparative = {"large": "larger", "small": "smaller"}
    changes = [comparative.get(phrase, phrase) for phrase in after if phrase not in before]
    if any(phrase.startswith("tilted") for phrase in before) and not any(p.startswith("tilted") for p in after):
        changes.append(_UPRIGHT)
    return changes or ["again, unchanged"]
