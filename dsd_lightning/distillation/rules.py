"""Rules that answers of models must keep: grid prompts, captions, verdicts and yes-or-no answers."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

from transformers import AutoTokenizer

from dsd_lightning.agents.reply_text import answer_text, without_thoughts
from dsd_lightning.distillation.records import DistillationError
from dsd_lightning.files.checkout import in_checkout

OPENING = "a grid of"
QUADRANTS = ("top-left", "top-right", "bottom-left", "bottom-right")
PANELS = len(QUADRANTS)

_CONFIDENCE = re.compile(
    r"(?:confidence|置信度|信心)(?: level| score)?[\s\"']*(?:\([^)\n]{0,20}\)\s*)?"
    r"(?:[:=]|\bis\b|-(?=\s)|为)?[\s\"'\[(]*(?:of |about )?"
    r"(?P<value>-?[0-9]++(?:[.,][0-9]++)?+)(?![\w.,]*[0-9])\s*"
    r"(?P<scale>%|(?:/|out of)\s*(?P<full>[0-9]+)|(?:-|to|\u2013|~)\s*[0-9])?",
    re.IGNORECASE,
)
_CHOICE = re.compile(r"\(?\b(?:yes\s*(?:/|or)\s*no|no\s*(?:/|or)\s*yes)\b\)?(?=\W*[:)?])")
_VERDICT_KEY = re.compile(
    r"[\"'](?:answer|verdict|same|identical|result|conclusion)[\"']\s*:\s*[\"']?(yes|no|true|false)\b"
)
_WORDS = re.compile(r"[a-z]+")
_OPENING_WORD = re.compile(r"\W*(yes|no)\b\s*(?:[,.:;!-]|$)")
_DOUBT = {
    "yes": re.compile(
        r"\bnot?\b|n['\u2019]?t\b|\b(?:but|however|except|although|though|differ\w*|partly|maybe|wait)\b"
    ),
    "no": re.compile(r"\b(?:but|however|wait|although|though|maybe|mean)\b|\b(?<!not )(?<!the )(?:same|identical)\b"),
}
_CHINESE = {"是": True, "是的": True, "相同": True, "否": False, "不是": False, "不相同": False, "不同": False}
_HUNDRED = 100
_SUBJECT = re.compile(r"^(yes|no)\s*(?:[:,.-]\s*(.*))?$", re.IGNORECASE)


@dataclass(frozen=True)
class Verdict:
    """What a judge concluded: yes or no, and how sure it says it is that the answer is yes, in [0, 1] (None: unsaid)."""

    same: bool
    confidence: float | None


def read_verdict(text: str) -> Verdict | None:
    """Return the verdict at the end of an answer; None where there is none, or more than one.

    It is the last line that is not the confidence: exactly one of the words yes and no, as its last word, or as its first
    with nothing behind it that contradicts it; or a JSON object's answer. "Yes and no" is no verdict.
    """
    text = answer_text(text).lower()
    same = _read_same(text)
    return None if same is None else Verdict(same, _read_confidence(text))


def _read_same(text: str) -> bool | None:
    keyed = {word in ("yes", "true") for word in _VERDICT_KEY.findall(text)}
    if keyed:
        return keyed.pop() if len(keyed) == 1 else None
    lines = [_CHOICE.sub("", line) for line in text.splitlines() if not _CONFIDENCE.match(line.lstrip(" -#\t"))]
    lines = [line for line in lines if any(character.isalpha() for character in line)]
    if not lines:
        return None
    last = lines[-1]
    if (chinese := last.rpartition(":")[2].strip(" .。!")) in _CHINESE:
        return _CHINESE[chinese]
    words = _WORDS.findall(last)
    if sum(word in ("yes", "no") for word in words) != 1:
        return None
    if words[-1] in ("yes", "no"):
        return words[-1] == "yes"
    opening = _OPENING_WORD.match(last)
    if opening is None or _DOUBT[opening[1]].search(last, opening.end()):
        return None
    return opening[1] == "yes"


def _read_confidence(text: str) -> float | None:
    """Return the last confidence that a text states, in [0, 1]; None where it states none that is clear.

    Numbers are of 100 or have their scale with them; 0.95 is a share. A bare 1 could be either, so it is unclear.
    """
    matches = list(_CONFIDENCE.finditer(text))
    if not matches:
        return None
    value, scale = float(matches[-1]["value"].replace(",", ".")), matches[-1]["scale"] or ""
    if full := matches[-1]["full"]:
        confidence = value / int(full) if int(full) else -1.0
    elif scale not in ("", "%") or (not scale and matches[-1]["value"] == "1"):
        return None
    else:
        is_share = not scale and value <= 1
        confidence = value if is_share else value / _HUNDRED
    return confidence if 0 <= confidence <= 1 else None


def accepted(same: bool, confidence: float | None, least_confidence: float | None) -> bool:
    """Return whether a verdict keeps its pair: by its confidence where a threshold is given and one was said."""
    if least_confidence is None or confidence is None:
        return same
    return confidence >= least_confidence


def read_subject(text: str) -> tuple[bool, str] | None:
    """Return the answer to whether a caption has a subject: (True, the subject) or (False, the reason); None if neither."""
    text = answer_text(text)
    match = _SUBJECT.match(text)
    if match is None or "\n" in text:
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
        return AutoTokenizer.from_pretrained(in_checkout(self.tokenizer), subfolder="tokenizer")

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
    """Return a model's text without its thoughts and the quotation marks or backticks that it may have put around it."""
    text = without_thoughts(text)
    for mark in ("```", "`", '"', "\N{LEFT DOUBLE QUOTATION MARK}\N{RIGHT DOUBLE QUOTATION MARK}"):
        opening, closing = (mark[0], mark[1]) if mark[0] == "\N{LEFT DOUBLE QUOTATION MARK}" else (mark, mark)
        if text.startswith(opening) and text.endswith(closing) and len(text) > len(opening) + len(closing):
            text = text[len(opening) : -len(closing)].strip()
    return text
