"""Fills the instructions to language models, and reads their answers."""

from __future__ import annotations

import re
from importlib.resources import files

from dsd_lightning.agents import AgentFailure, Answer


class NoAnswer(Exception):
    """A language model gave no usable answer; the message says why."""


def instruction(name: str, **values: object) -> str:
    """Return the text of `instructions/NAME.txt` with `values` inserted."""
    text = (files(__package__) / "instructions" / f"{name}.txt").read_text(encoding="utf-8")
    return text.strip().format(**values)


def line_of(answer: Answer | AgentFailure) -> str:
    """Return an answer as one line, without quotation marks around it.

    Raises:
        NoAnswer: a failure, an empty answer, or one that was cut off.
    """
    if isinstance(answer, AgentFailure):
        raise NoAnswer(str(answer))
    text = re.sub(r"\s+", " ", answer.text).strip()
    for mark in ('"', "'", "`", "**"):
        if len(text) > 2 * len(mark) and text.startswith(mark) and text.endswith(mark):
            text = text[len(mark) : -len(mark)].strip()
    if not text or answer.finish == "length":
        raise NoAnswer(f"{answer.served_model} gave {'a cut-off' if text else 'an empty'} answer")
    return text
