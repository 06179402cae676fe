"""Reads the score that a judge's reply states, or why it states none; nothing is guessed."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

LOWEST, HIGHEST = 0, 4
"""Scores of DreamBench++'s rubrics."""

Problem = Literal["refused", "no_score", "several_scores", "out_of_range", "not_a_whole_number"]

_MARKER = re.compile(
    # "Score", with markdown around it, and the scale repeated behind it, as in "**Score (0-4)**:"
    r"(?<![^\W_])scores?(?![^\W_])[\s*_`#]*(?:[(\[]?\s*(?:from\s+)?0\s*(?:-|\u2013|to)\s*4\s*[)\]]?[\s*_`#]*)?"
    # what leads to the number: punctuation, "is", "of"
    r"(?:[:=\uff1a]|-(?=\s)|\u2013|is|of|\bwould be)?[\s*_`#:\[(]*"
    # possessive: a number is matched completely, with its scale, or not at all
    r"(?P<number>[-\u2212+]?[0-9]++(?:[.,][0-9]++)*+)"
    r"(?P<rest>\s*(?:/|out of|of)\s*[0-9]++|\s*(?:-|\u2013|to|or|and)\s*[0-9]++)?+"
    r"(?![\w%])",
    re.IGNORECASE,
)
_REFUSAL = re.compile(
    r"\b(?:i(?:'|\u2019)?m sorry|i am sorry|i apologi[sz]e|unable to (?:assist|help|comply|provide|evaluate)"
    r"|(?:can(?:'|\u2019)?t|cannot|can not|won(?:'|\u2019)?t) (?:assist|help|comply|provide|evaluate|do that|rate|score))",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class Score:
    """A whole number from `LOWEST` to `HIGHEST`."""

    value: int


@dataclass(frozen=True)
class Unscored:
    """A reply that states no score."""

    problem: Problem


def parse(reply: str) -> Score | Unscored:
    """Return the score that a reply states after the word "score", or why it states none.

    A reply that repeats one score states it; one that states two different ones, a range, another scale than 0 to 4, a
    fraction or a number in words states none.
    """
    values: set[int] = set()
    problems: list[Problem] = []
    for match in _MARKER.finditer(reply):
        rest = match["rest"] or ""
        beyond = re.search(r"[0-9]+", rest)
        if "/" in rest or "of" in rest:
            if beyond is not None and int(beyond[0]) != HIGHEST:
                problems.append("out_of_range")
                continue
        elif beyond is not None:
            problems.append("several_scores")
            continue
        number = match["number"].replace("\N{MINUS SIGN}", "-").replace(",", ".")
        if not re.fullmatch(r"[-+]?[0-9]{1,9}(?:\.0+)?", number):
            problems.append("not_a_whole_number")
            continue
        value = int(float(number))
        if LOWEST <= value <= HIGHEST and not number.startswith("-"):
            values.add(value)
        else:
            problems.append("out_of_range")
    if len(values) > 1 or (values and problems):
        return Unscored("several_scores")
    if values:
        return Score(values.pop())
    if problems:
        return Unscored(problems[0])
    return Unscored("refused" if _REFUSAL.search(reply) else "no_score")
