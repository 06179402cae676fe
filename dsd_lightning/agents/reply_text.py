"""Extracts the answer from a model's reply: without its reasoning, code fences and emphasis, in plain characters."""

from __future__ import annotations

import re
import unicodedata

_THOUGHTS = re.compile(r"<(think|thinking|thought|reasoning)>.*?(?:</\1>|\Z)", re.IGNORECASE | re.DOTALL)
_OPENED_BEFORE = re.compile(r"\A.*</(?:think|thinking|thought|reasoning)>", re.IGNORECASE | re.DOTALL)
_FENCE = re.compile(r"^[ \t]*(?:```|~~~)[\w-]*[ \t]*$\n?", re.MULTILINE)
_EMPHASIS = re.compile(r"\*{1,3}|__|`")


def without_thoughts(reply: str) -> str:
    """Return a reply without its `<think>` parts; some servers omit the opening tag, which is in their template.

    A part that is not closed reaches to the end: the reply was cut off before its answer.
    """
    return _OPENED_BEFORE.sub("", _THOUGHTS.sub("", reply)).strip()


def answer_text(reply: str) -> str:
    """Return what a reply answers, for a parser: no thoughts, fences or emphasis; full-width characters made ASCII."""
    text = unicodedata.normalize("NFKC", without_thoughts(reply))
    return _EMPHASIS.sub("", _FENCE.sub("", text)).strip()
