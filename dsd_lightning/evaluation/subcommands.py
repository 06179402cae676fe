"""Which command does a command line of `evaluate.py` begin with, which configuration has it, and what does it run?"""

from __future__ import annotations

import importlib
import sys
from dataclasses import dataclass
from typing import Any

from omegaconf import DictConfig

REFUSED = 2
"""Exit code."""


@dataclass(frozen=True)
class Subcommand:
    """A configuration below `conf/`, and the function that it is given to, imported when it runs."""

    config: str
    function: str

    def run(self, config: DictConfig) -> str:
        """Run it and return what to tell the user."""
        module, _, name = self.function.partition(":")
        run: Any = getattr(importlib.import_module(f"dsd_lightning.evaluation.{module}"), name)
        return str(run(config))


SUBCOMMANDS = {
    (): Subcommand("evaluate", "command:score"),
    ("table",): Subcommand("evaluate/table", "command:table"),
    ("published",): Subcommand("evaluate/published", "command:published_report"),
    ("similarity",): Subcommand("evaluate/similarity", "similarity:run"),
    ("story",): Subcommand("evaluate/story", "similarity:story"),
    ("study", "make"): Subcommand("evaluate/study_make", "study:make"),
    ("study", "score"): Subcommand("evaluate/study_score", "study:score"),
}
"""By the words that a command line begins with."""


def taken_from(arguments: list[str]) -> Subcommand:
    """Return the command that `arguments` (`sys.argv`) name, and take its words out of them, for Hydra to read the rest.

    Ends the process where there is no such command.
    """
    words: list[str] = []
    for argument in arguments[1:]:
        if "=" in argument or argument.startswith(("-", "+", "~")):
            break
        words.append(argument)
    command = SUBCOMMANDS.get(tuple(words))
    if command is None:
        known = ", ".join(" ".join(each) for each in SUBCOMMANDS if each)
        sys.stderr.write(
            f"error: evaluate.py {' '.join(words)}: there is no such command; there are {known}, and none\n"
        )
        sys.exit(REFUSED)
    del arguments[1 : 1 + len(words)]
    return command
