"""Scripts of answers and faults for the rehearsal server: YAML rules, or a Python callable."""

from __future__ import annotations

import importlib
import importlib.util
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import yaml

FAULTS = {
    "rate_limited": "429 with Retry-After (seconds: retry_after)",
    "quota": "429 that says that the account is empty",
    "unauthorized": "401, repeating the key as some providers do",
    "rejected": "400",
    "unavailable": "503",
    "reset": "the connection is reset before a word",
    "slow": "the head of an answer, and its body after `seconds`",
    "cut": "half of the body, then the end of the connection",
    "malformed": "200 with JSON that is no answer of the protocol",
    "refusal": "a refusal, as the protocol has it",
    "nonsense": "a well-formed answer without sense",
}
NONSENSE = "yes no yes \N{SNOWMAN} 42 perhaps four quadrants ]]}"


@dataclass(frozen=True)
class Asked:
    """A request, as a script sees it."""

    protocol: str
    """openai or gemini."""
    model: str
    turns: tuple[tuple[str, str], ...]
    """(role, text) of each turn; roles are system, user and assistant in both protocols."""
    images: tuple[bytes, ...]
    digest: str
    """sha256 of path and body: equal for equal requests."""
    number: int
    """Which of all requests this is, from 1."""
    repeat: int
    """Which asking of this very request this is, from 1."""

    @property
    def text(self) -> str:
        """Return the text of the last turn."""
        return self.turns[-1][1]


@dataclass(frozen=True)
class Fault:
    """A failure to meet, and when. Everything that is not given applies always."""

    fault: str
    match: str | None = None
    """Regular expression to find in the last turn's text."""
    first: int | None = None
    """Only so many first askings of each request."""
    every: int | None = None
    """Only each so-many-th of all requests."""
    retry_after: float = 1.0
    """Seconds, of rate_limited."""
    seconds: float = 5.0
    """Seconds, of slow."""

    def __post_init__(self) -> None:
        if self.fault not in FAULTS:
            raise ValueError(f"fault: {self.fault!r} is not known; choose of {', '.join(FAULTS)}")

    def applies(self, asked: Asked) -> bool:
        """Return whether this request meets the fault."""
        return (
            (self.match is None or re.search(self.match, asked.text) is not None)
            and (self.first is None or asked.repeat <= self.first)
            and (self.every is None or asked.number % self.every == 0)
        )


Rule = Callable[[Asked], "str | Fault"]
"""What a script is: a request's answer, or how it fails."""


@dataclass(frozen=True)
class Reaction:
    """An answer by pattern."""

    say: tuple[str, ...]
    """One of these, picked by the request's digest, so that equal requests get equal answers."""
    match: str | None = None

    def applies(self, asked: Asked) -> bool:
        """Return whether this is the answer to a request."""
        return self.match is None or re.search(self.match, asked.text) is not None


class Script:
    """Faults first, then answers; the first that applies.

    Args:
        answers: mappings of `say` (a text, or several) and `match`.
        faults: mappings with the fields of `Fault`.
    """

    def __init__(self, answers: Sequence[Mapping[str, Any]], faults: Sequence[Mapping[str, Any]] = ()) -> None:
        self._faults = [Fault(**_known(Fault, each)) for each in faults]
        self._answers = [Reaction(**{**_known(Reaction, each), "say": _texts(each.get("say", ()))}) for each in answers]

    def __call__(self, asked: Asked) -> str | Fault:
        for fault in self._faults:
            if fault.applies(asked):
                return fault
        for answer in self._answers:
            if answer.applies(asked):
                return answer.say[int(asked.digest, 16) % len(answer.say)]
        return Fault("rejected")


def _known(kind: type, given: Mapping[str, Any]) -> dict[str, Any]:
    names = [field.name for field in fields(kind)]
    unknown = sorted(set(given) - set(names))
    if unknown:
        raise ValueError(f"{kind.__name__.lower()} {dict(given)}: {unknown} not known; choose of {names}")
    return dict(given)


def _texts(say: str | Sequence[str]) -> tuple[str, ...]:
    texts = (say,) if isinstance(say, str) else tuple(say)
    if not texts:
        raise ValueError("an answer needs `say`: a text, or a list of texts")
    return texts


def load_script(source: str) -> Rule:
    """Return the script that `source` names: `FILE.yaml`, `FILE.py:FUNCTION` or `PACKAGE.MODULE:FUNCTION`.

    Raises:
        ValueError: it names none of these, or the YAML has unknown entries.
        FileNotFoundError: there is no such file.
    """
    if source.endswith((".yaml", ".yml")):
        content = yaml.safe_load(Path(source).read_text()) or {}
        unknown = sorted(set(content) - {"answers", "faults"})
        if unknown:
            raise ValueError(f"{source}: {unknown} not known; a script has answers and faults")
        return Script(content.get("answers", ()), content.get("faults", ()))
    where, _, name = source.rpartition(":")
    if not where:
        raise ValueError(f"--script {source}: give FILE.yaml, FILE.py:FUNCTION or PACKAGE.MODULE:FUNCTION")
    if where.endswith(".py"):
        if not Path(where).exists():
            raise FileNotFoundError(f"--script {source}: there is no file {where}")
        spec = importlib.util.spec_from_file_location("rehearsal_script", where)
        if spec is None or spec.loader is None:
            raise ValueError(f"--script {source}: {where} cannot be imported")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    else:
        module = importlib.import_module(where)
    rule: Rule | None = getattr(module, name, None)
    if not callable(rule):
        raise ValueError(f"--script {source}: {where} has no function {name}")
    return rule
