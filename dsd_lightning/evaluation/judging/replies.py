"""Reads the score that a judge's reply states, or why it states none; nothing is guessed."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any, Literal

from dsd_lightning.agents.reply_text import answer_text

LOWEST, HIGHEST = 0, 4
"""Scores of DreamBench++'s rubrics."""

Problem = Literal["refused", "no_score", "several_scores", "out_of_range", "not_a_whole_number", "unclear"]

_WORDS = {"zero": 0, "one": 1, "two": 2, "three": 3, "four": 4, "零": 0, "一": 1, "二": 2, "两": 2, "三": 3, "四": 4}
_NUMBER = (
    # possessive: a number is matched completely, with its scale, or not at all
    r"(?P<number>[-\u2212+]?[0-9]++(?:[.,][0-9]++)*+)(?:\s*+分(?!之))?+"
    r"(?:(?P<scale>\s*[(\[]?\s*(?:/|out of|of)\s*[0-9]++(?:\.0+)?[)\]]?)(?P<others>(?:-|\s*(?:~|to|or|或|到)\s*)[0-9]++)?+"
    r"|(?P<range>\s*(?:-|\u2013|~|to|or|and|,|;|&|或|到)\s*[0-9]++))?+"
    r"(?!_*+[^\W_]|[%+\u2044])"
)
_MARKER = re.compile(
    # the word, not of the scale's end or of another quantity, with the scale behind it, as in "Score (0-4):"
    r"(?<!max)(?<!max[ _])(?<!min[ _])(?<!maximum[ _])(?<!highest[ _])(?<!possible[ _])(?<!confidence[ _])"
    r"(?:(?<![^\W_])(?:scores?|rating|rate(?=\s+(?:this|it)\b))(?![^\W_])|评分|得分|打分|分数)[\s_#\"']*"
    r"(?:[(\[]?\s*(?:(?:(?:range|scale)?:?\s*(?:of\s+|from\s+)?)0\s*(?:-|\u2013|to|~)\s*4|(?:out of|/|of)\s*4)"
    r"\s*[)\]]?[\s_#\"']*)?"
    # what leads to the number: punctuation, "is", "of"
    r"(?:[=-]>|\u2192|[:=|]|-(?=\s)|\u2013|\u2014|is|(?P<of>of)|as"
    r"|\b(?:(?P<would>would)|should) be|(?:this|it)(?: as)?(?: an?)?|为|是)?"
    r"[\s_#:|\"'\[({$]*(?:\\?\bboxed\{)?"
    rf"(?:{_NUMBER}|(?P<word>{'|'.join(_WORDS)})(?=分?(?:\s*(?:/|out of|of)\s*(?:4|four))?\s*(?:[.,;:!)\]\"'}}\n]|$)))",
    re.IGNORECASE,
)
_ALONE = re.compile(
    rf"[\"'\[({{$]*(?:\\boxed\{{)?(?:{_NUMBER}|(?P<word>{'|'.join(_WORDS)}))[\"'\])}}$.。!]*", re.IGNORECASE
)
_TAG = re.compile(r"<\s*(/?)\s*(?:score|rating)\s*>", re.IGNORECASE)
_ANSWER = re.compile(r"<\s*answer\s*>(.*?)<\s*/\s*answer\s*>", re.IGNORECASE | re.DOTALL)
_DENIED = re.compile(
    # before "score of 4": "cannot get a", "to reach a", "no"
    r"(?:\b(?:no|not|never|cannot|without|than|to (?:reach|get|earn|achieve|deserve|merit))\b|n['\u2019]t\b)"
    r"(?:\s+(?:get|be|given|receive|reach|achieve|earn|deserve|merit|warrant|justify|a|an|the|any|full|perfect|high|higher)){0,4}\s*$",
    re.IGNORECASE,
)
_NEAR = 120
"""Characters before "score of 4" in which its denial is looked for."""
_EXPLAINED = re.compile(
    r"\s*(?:means?|is (?:for|reserved|given (?:if|when))|would (?:mean|need|require))\b", re.IGNORECASE
)
_SHARE = re.compile(
    # a count of something: "2 of the criteria", "3/4 of features", "2 features match"
    r"\s*(?:of\b|(?:of\s+the\s+)?(?:\w+\s+)?(?:features?|criteria|criterion|elements?|aspects?|attributes?|parts?|details?|"
    r"items?|things?|images?|colou?rs?|traits?)\b)",
    re.IGNORECASE,
)
_CONCLUSION = re.compile(
    r"(?:\b(?:so|hence|therefore|thus|giving|makes|gives|final|(?:revis|chang|reduc|lower|rais|adjust)ed to)\b|=>?|->|\u2192)"
    r"[^0-9.\n]{0,30}([0-9]+)",
    re.IGNORECASE,
)
_REVISED = re.compile(
    # a second thought behind the score, which ends in another number
    r"\b(?:on (?:further |second |closer )?(?:reflection|thoughts?|consideration)|correction|scratch that|make (?:it|that))\b"
    r"[^0-9.\n]{0,30}\b([0-9])(?=\s*(?:[.,;!)*\n]|/\s*4|out of|$))",
    re.IGNORECASE,
)
_OTHER_SCALE = re.compile(
    r"scale[^0-9\n]{0,12}[0-9]+\s*(?:-|\u2013|to|~)\s*(?P<most>[0-9]+)|\s*(?:stars?|points?)\s+(?:out\s+)?of\s+(?P<of>[0-9]+)"
    r"|\b(?P<points>[0-9]+)[- ]point\s+scale"
    r"|^\s*(?:out\s+)?of\s+(?P<word>five|six|seven|eight|nine|ten|twenty|(?:a\s+)?hundred)\b",
    re.IGNORECASE,
)
_SCALES = {"most": (HIGHEST,), "of": (HIGHEST,), "points": (HIGHEST, HIGHEST + 1)}
"""What is said of the scale from 0 to 4, by group; it has five points, and some count four."""
_FRACTION = re.compile(r"\s*(?:%|(?:and\s+a\s+)?half\b|[0-9]+/[0-9]+)", re.IGNORECASE)
_CONDITION = re.compile(r"\b(?:if|but|were|had|without|unless|except)\b", re.IGNORECASE)
_LIST_ITEM = re.compile(r"[.)]\s+\S")
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
    """Return the score that a reply states after the word "score" or "rating", or "rate this", or why it states none.

    JSON, code fences, emphasis, LaTeX, tags, full-width and Chinese forms are read, reasoning in `<think>` is not. A reply
    that is nothing but a number states it. One that repeats one score states it; one that states two different ones, a range,
    another scale than 0 to 4, a fraction of something, a number that is not whole, or only what a score would mean or what
    score is not reached, states none.
    """
    text = _of_json(answer_text(reply))
    answers = _ANSWER.findall(text)
    text = _TAG.sub(lambda tag: "\n" if tag[1] else "score: ", answers[0] if len(answers) == 1 else text)
    alone = _ALONE.fullmatch(text.strip())
    mentions = [alone] if alone is not None else list(_MARKER.finditer(text))
    matches = [match for match in mentions if not _is_hypothetical(match)]
    if mentions and not matches:
        return Unscored("unclear")
    read = [_read(match, text[match.end() :].partition("\n")[0]) for match in matches]
    values = {each for each in read if isinstance(each, int)}
    problems: list[Problem] = [each for each in read if not isinstance(each, int)]
    revised = {int(each) for each in _REVISED.findall(text, matches[-1].end())} if values else set()
    if len(values | revised) > 1 or (values and problems):
        return Unscored("several_scores")
    if values:
        return Score(values.pop())
    if problems:
        return Unscored(problems[0])
    return Unscored("refused" if _REFUSAL.search(text) else "no_score")


def _of_json(text: str) -> str:
    """Return the score of a JSON object that has one, so that the words of its other members are not read; else the text."""
    pairs: list[tuple[str, Any]] = []

    def note(members: list[tuple[str, Any]]) -> dict[str, Any]:
        pairs[:] = members  # the outermost object is the last one that is complete
        return dict(members)

    try:
        is_object = isinstance(json.loads(text, object_pairs_hook=note), dict)
    except (ValueError, RecursionError):
        return text
    scores = [value for name, value in pairs if name.strip().lower() in ("score", "rating")]
    return f"score: {scores[0]}" if is_object and len(scores) == 1 else text


def _is_hypothetical(match: re.Match[str]) -> bool:
    """Return whether "a score of N" is denied, explained in general, or what would be on a condition, rather than stated."""
    groups, text = match.groupdict(), match.string
    if groups.get("of") is not None:
        return bool(
            _DENIED.search(text, max(0, match.start() - _NEAR), match.start()) or _EXPLAINED.match(text, match.end())
        )
    if groups.get("would") is not None:
        start = max(text.rfind(end, 0, match.start()) for end in ".\n") + 1
        return bool(
            _CONDITION.search(text, start, match.start()) or _CONDITION.search(text[match.end() :].partition("\n")[0])
        )
    return False


def _read(match: re.Match[str], behind: str) -> int | Problem:
    """Return the score of a match, or its problem.

    Args:
        match: of a number with what stands before it.
        behind: the rest of its line.
    """
    if word := match.groupdict().get("word"):
        return _WORDS[word.lower()]
    scale = re.search(r"[0-9]+", match["scale"] or "")
    if scale is not None and int(scale[0]) != HIGHEST:
        return "out_of_range"
    if match["others"] or match["range"]:
        return "several_scores"
    if (other := _OTHER_SCALE.search(behind)) and _is_other(other):
        return "out_of_range"
    if _FRACTION.match(behind):
        return "not_a_whole_number"
    number = match["number"].replace("\N{MINUS SIGN}", "-").replace(",", ".")
    if not re.fullmatch(r"[-+]?[0-9]{1,9}(?:\.0{1,2})?", number):
        return "not_a_whole_number"
    value = int(float(number))
    if not LOWEST <= value <= HIGHEST or number.startswith("-"):
        return "out_of_range"
    conclusion = _CONCLUSION.search(behind)
    listed = "\n" in match[0][: match.start("number") - match.start()] and _LIST_ITEM.match(behind)
    if (
        listed
        or re.match(r"\s+if\b", behind)
        or _SHARE.match(behind)
        or (conclusion is not None and int(conclusion[1]) != value)
    ):
        return "unclear"
    return value


def _is_other(scale: re.Match[str]) -> bool:
    """Return whether a scale that a reply names is another than 0 to 4."""
    name = str(scale.lastgroup)
    return name == "word" or int(scale[name]) not in _SCALES[name]
