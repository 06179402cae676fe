"""Shows that the parser reads the score that a judge's reply states, and none if it states none."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dsd_lightning.evaluation.judging.replies import HIGHEST, LOWEST, Score, Unscored, parse

REPLIES = Path(__file__).parents[1] / "data" / "evaluation" / "dreambenchpp_fewshot"
SCORES = st.integers(LOWEST, HIGHEST)


def real_replies() -> list[dict[str, Any]]:
    return [each for file in sorted(REPLIES.glob("*.json")) for each in json.loads(file.read_text())]


def test_all_real_replies_are_parsed_as_their_text_says() -> None:
    replies = real_replies()
    assert len(replies) == 82
    other_than_stored = 0
    for each in replies:
        stated = {int(digit) for digit in re.findall(r"Score:[^0-9]*([0-9])", each["content"])}
        assert parse(each["content"]) == Score(*stated), each["content"]
        other_than_stored += stated != {each["score"]}
    assert other_than_stored == 7


STATED = {
    "Score: 3": 3,
    "score:0": 0,
    "**Score**: 4": 4,
    "### Score:\n2 (Fair)": 2,
    "**Score (0-4):** 1": 1,
    "Score: [3]": 3,
    "Score: 3/4": 3,
    "Score: 3 out of 4": 3,
    "Score: 3.0": 3,
    "Score\uff1a2": 2,
    "Analysis: shapes agree in 3 of 4 parts.\nScore: 2": 2,
    "I give it a score of 1.": 1,
    "Score: 4\n\nAll in all, the final score is 4.": 4,
    "Score: 3. On closer consideration of 2 details, it stays 3": 3,
    '{"reason": "same shape", "score": 3}': 3,
    '```json\n{"Score": "2", "max_score": 4}\n```': 2,
    "{'score': 1}": 1,
    "<think>Perhaps score: 1? Or a score of 2.</think>\nScore: 3": 3,
    "Perhaps score: 1.</think>**Score:** 3": 3,
    "Rating: 3": 3,
    "My rating is 3 out of 4.": 3,
    "3 out of 4": 3,
    "3/4": 3,
    "**3**": 3,
    "3": 3,
    "Score: three": 3,
    "I score this a 2 because the colours differ.": 2,
    "| Score | 3 |": 3,
    "<score>3</score>": 3,
    "Score: \\boxed{3}": 3,
    "\uff33\uff43\uff4f\uff52\uff45\uff1a\uff13": 3,
    "评分\uff1a3": 3,
    "得分\uff1a3分\uff08满分4分\uff09": 3,
    "最终评分为 2 分。": 2,
    "Score (out of 4): 3": 3,
    "Confidence score: 90\nScore: 3": 3,
    "Score: 3, so the subject is mostly kept": 3,
    "*Score*: _3_": 3,
    "Score \u2014 3": 3,
    "Score -> 3": 3,
    "Score: $3$": 3,
    "$\\boxed{3}$": 3,
    "<answer>3</answer>": 3,
    "<answer>\n**Score**: 3\n</answer>\nA score of 2 would be too low.": 3,
    "three": 3,
    "Score: three out of four": 3,
    "Score (range: 0-4): 3": 3,
    "Score (scale of 0 to 4): 3": 3,
    "The score should be 3.": 3,
    "I would rate this 3 out of 4.": 3,
    '{"reason": "a score of 2 would be too low", "score": 3}': 3,
    '{"scores": {"shape": 3, "color": 2}, "Rating": "2"}': 2,
    "No score of 4 can be given. Score: 1": 1,
    "To reach a score of 4, the colours must match.\nScore: 2": 2,
    "It doesn't deserve a score of 4.\nScore: 1": 1,
    "A score of 4 means identical.\nScore: 2": 2,
    "If the hat were there, the score would be 4. Score: 3": 3,
    "I think that the score would be 3.": 3,
    "Score: 3 on a 5-point scale": 3,
    "Score:\n3.": 3,
}


@pytest.mark.parametrize("reply", STATED)
def test_scores_are_read_however_they_are_set(reply: str) -> None:
    assert parse(reply) == Score(STATED[reply])


HOSTILE = {
    "": "no_score",
    "Punktzahl: 3": "no_score",
    "underscore 3": "no_score",
    "Score: 3\nScore: 1": "several_scores",
    "Score: 3-4": "several_scores",
    "Score: 0-4": "several_scores",
    "Score: 3 or 4": "several_scores",
    "Score: 3, although for color I would give a score of 1": "several_scores",
    "Score: 3\nScore: 30": "several_scores",
    "Score: 5": "out_of_range",
    "Score: 10": "out_of_range",
    "Score: -1": "out_of_range",
    "Score: 3/10": "out_of_range",
    "Score: 2.5": "not_a_whole_number",
    "Score: 2,5": "not_a_whole_number",
    "Score: 1/4 of features match, so 2": "unclear",
    "Score: 2 of the criteria are met": "unclear",
    "Score: 2 features match": "unclear",
    "It cannot get a score of 4.": "unclear",
    "The score would be 4, but the hat is missing.": "unclear",
    "Score: 4 if lenient, 2 if strict": "unclear",
    "Score: 3, revised to 2": "unclear",
    "Score: 3. On reflection, 2.": "several_scores",
    "Score: 3\nCorrection: 2": "several_scores",
    "Score: 3. Make that a 2/4": "several_scores",
    "Score:\n1. The shape is kept": "unclear",
    "Score:\n2) good": "unclear",
    "Score: 3 out of ten": "out_of_range",
    "Score: 3 on a 10-point scale": "out_of_range",
    "Rating: 4 stars of 5": "out_of_range",
    "Score: 3 %": "not_a_whole_number",
    "Score: 3 and a half": "not_a_whole_number",
    "Score: 3 1/2": "not_a_whole_number",
    "success rate: 3": "no_score",
    "A score of 4 means identical. The image gets 2.": "unclear",
    "Score: 3/4 or 4/4": "several_scores",
    '{"score": 3, "score": 1}': "several_scores",
    '[{"score": 3}, {"score": 1}]': "several_scores",
    "Score: 3 => 2": "unclear",
    "Score: 3 (out of 5)": "out_of_range",
    "Score: 3 on a scale of 1 to 10": "out_of_range",
    "Score: 3, 4": "several_scores",
    "Score: 4,000": "not_a_whole_number",
    "Score: \N{VULGAR FRACTION ONE QUARTER}": "no_score",
    "Score: 3+": "no_score",
    "Score: >3": "no_score",
    "max_score: 4": "no_score",
    "<think>The score is 3": "no_score",
    "3 of the 4 parts match": "no_score",
    '{"score": null}': "no_score",
    '{"score": [2, 3]}': "several_scores",
    "Score: 3.5%": "no_score",
    "Score: 3/10%": "no_score",
    "Score: 3stars": "no_score",
    "I'm sorry, I can't help with that.": "refused",
    "I cannot evaluate images of real people.": "refused",
}


@pytest.mark.parametrize("reply", HOSTILE)
def test_a_reply_without_a_score_gets_none(reply: str) -> None:
    assert parse(reply) == Unscored(HOSTILE[reply])  # type: ignore[arg-type]


@given(st.text(max_size=300))
def test_any_text_is_a_score_in_range_or_none(reply: str) -> None:
    result = parse(reply)
    assert isinstance(result, Unscored) or LOWEST <= result.value <= HIGHEST


@given(st.text(alphabet=st.characters(exclude_categories=("Nd", "No", "Nl")), max_size=100), SCORES)
def test_a_score_at_the_end_is_read_after_any_words(words: str, score: int) -> None:
    assert parse(f"{words}\nScore: {score}") == Score(score)


@given(SCORES, SCORES)
def test_two_scores_are_one_only_if_they_agree(one: int, other: int) -> None:
    result = parse(f"Score: {one}\nsome words\n**Score**: {other}")
    assert result == (Score(one) if one == other else Unscored("several_scores"))


@given(st.integers().filter(lambda number: not LOWEST <= number <= HIGHEST))
def test_numbers_out_of_range_are_never_scores(number: int) -> None:
    assert isinstance(parse(f"Score: {number}"), Unscored)
