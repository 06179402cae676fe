"""Rules that answers of models must keep: grid prompts, captions, verdicts and yes-or-no answers."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

from transformers import AutoTokenizer

from dsd_lightning.distillation.records import DistillationError

OPENING = "a grid of"
QUADRANTS = ("top-left", "top-right", "bottom-left", "bottom-right")
PANELS = len(QUADRANTS)

_CONFIDENCE = re.compile(r"confidence\W{1,4}(\d{1,3})(?:\.\d+)?\b", re.IGNORECASE)
_WORDS = re.compile(r"[a-z]+")
_HUNDRED = 100
_SUBJECT = re.compile(r"^(yes|no)\s*(?:[:,.-]\s*(.*))?$", re.IGNORECASE)


@dataclass(frozen=True)
class Verdict:
    """What a judge concluded: yes or no, and how sure it says it is that the answer is yes, in [0, 1] (None: unsaid)."""

    same: bool
    confidence: float | None


def read_verdict(text: str) -> Verdict | None:
    """Return the verdict at the end of an answer; None where there is none, or more than one.

    The last line must hold exactly one of the words yes and no, as its last word. "Yes and no" is no verdict.
    """
    lines = [line for line in text.lower().splitlines() if _WORDS.search(line)]
    words = _WORDS.findall(lines[-1]) if lines else []
    if sum(word in ("yes", "no") for word in words) != 1 or words[-1] not in ("yes", "no"):
        return None
    said = [int(number) for number in _CONFIDENCE.findall(text)]
    confidence = min(said[-1], _HUNDRED) / _HUNDRED if said else None
    return Verdict(words[-1] == "yes", confidence)


def accepted(same: bool, confidence: float | None, least_confidence: float | None) -> bool:
    """Return whether a verdict keeps its pair: by its confidence where a threshold is given and one was said."""
    if least_confidence is None or confidence is None:
        return same
    return confidence >= least_confidence


def read_subject(text: str) -> tuple[bool, str] | None:
    """Return the answer to whether a caption has a subject: (True, the subject) or (False, the reason); None if neither."""
    match = _SUBJECT.match(text.strip())
    if match is None or "\n" in text.strip():
        return None
    said, rest = match[1].lower() == "yes", (match[2] or "").strip(" .`\"'")
    return None if said and not rest else (said, rest)


@dataclass(frozen=True)
class Words:
    """Lengths as the teacher counts them, and the rules that its prompts and the captions must keep.

    Attributes:
        tokenizer: folder or hub id of a model in the diffusers layout, whose CLIP tokenizer counts.
        max_tokens: of a prompt or caption, its start and end tokens included.
        quadrants: "named" wants the four quadrants' names in a grid prompt, "listed" four parts after semicolons.
    """

    tokenizer: str
    max_tokens: int
    quadrants: Literal["named", "listed"]

    def __post_init__(self) -> None:
        if self.quadrants not in ("named", "listed"):
            raise DistillationError(f"words.quadrants={self.quadrants!r}: choose named or listed")
        if self.max_tokens < 1:
            raise DistillationError(f"words.max_tokens={self.max_tokens}: must be at least 1")

    @cached_property
    def _clip(self) -> Any:
        return AutoTokenizer.from_pretrained(self.tokenizer, subfolder="tokenizer")

    def tokens(self, text: str) -> int:
        """Return the number of CLIP tokens of `text`, start and end included."""
        # verbose: the tokenizer would warn of the very lengths that are looked for here
        return len(self._clip(text, verbose=False).input_ids)

    def broken_by_caption(self, text: str) -> str | None:
        """Return the rule that a caption breaks, or None."""
        if not text.strip():
            return "it is empty"
        if len(text.strip().splitlines()) > 1:
            return "it has more than one line"
        if (count := self.tokens(text)) > self.max_tokens:
            return f"it has {count} tokens, more than {self.max_tokens}"
        return None

    def broken_by_grid(self, text: str) -> str | None:
        """Return the rule that a grid prompt breaks, or None."""
        broken = self.broken_by_caption(text)
        if broken is not None:
            return broken
        lower = text.lower().replace("top left", "top-left").replace("top right", "top-right")
        lower = lower.replace("bottom left", "bottom-left").replace("bottom right", "bottom-right")
        if not lower.startswith(OPENING):
            return f'it does not begin with "{OPENING}"'
        if self.quadrants == "named":
            missing = [name for name in QUADRANTS if name not in lower]
            return f"it does not say what the {missing[0]} quadrant shows" if missing else None
        parts = [part for part in text.split(";") if part.strip()]
        if len(parts) != PANELS + 1:
            return f"it describes {len(parts) - 1} quadrants after semicolons, not {PANELS}"
        return None


def plain(text: str) -> str:
    """Return a model's text without the quotation marks or backticks that it may have put around it."""
    text = text.strip()
    for mark in ("```", "`", '"', "\N{LEFT DOUBLE QUOTATION MARK}\N{RIGHT DOUBLE QUOTATION MARK}"):
        opening, closing = (mark[0], mark[1]) if mark[0] == "\N{LEFT DOUBLE QUOTATION MARK}" else (mark, mark)
        if text.startswith(opening) and text.endswith(closing) and len(text) > len(opening) + len(closing):
            text = text[len(opening) : -len(closing)].strip()
    return text
