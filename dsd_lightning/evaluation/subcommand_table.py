"""Maps the first words of an `evaluate.py` command line to a configuration and the function that runs it."""

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
    """A configuration below `conf/`, and the function that receives it; its module is imported when it runs."""

    config: str
    function: str

    def run(self, config: DictConfig) -> str:
        """Run it and return the text for the user.

        Raises:
            SettingError: a value of the configuration that cannot be meant.
        """
        from dsd_lightning.cli.settings import check_settings  # here, for --help to be quick

        check_settings(config)
        return str(self.resolve()(config))

    def resolve(self) -> Any:
        """Import and return the function."""
        module, _, name = self.function.partition(":")
        return getattr(importlib.import_module(f"dsd_lightning.evaluation.{module}"), name)


SUBCOMMANDS = {
    (): Subcommand("evaluate", "command:score"),
    ("table",): Subcommand("evaluate/table", "command:table"),
    ("similarity",): Subcommand("evaluate/similarity", "similarity.measures:run"),
    ("story",): Subcommand("evaluate/story", "similarity.measures:story"),
    ("ratings",): Subcommand("evaluate/ratings", "user_study.rating_files:export"),
    ("study", "make"): Subcommand("evaluate/study_make", "user_study.study:make"),
    ("study", "score"): Subcommand("evaluate/study_score", "user_study.study:score"),
}
"""By the words that a command line begins with."""


def pop_subcommand(arguments: list[str]) -> Subcommand:
    """Return the subcommand that `arguments` (`sys.argv`) name, and remove its words, so that Hydra reads the rest.

    Ends the process if there is no such subcommand.
    """
    words: list[str] = []
    for argument in arguments[1:]:
        if "=" in argument or argument.startswith(("-", "+", "~")):
            break
        words.append(argument)
    subcommand = SUBCOMMANDS.get(tuple(words))
    if subcommand is None:
        names = ", ".join(" ".join(key) for key in SUBCOMMANDS if key)
        sys.stderr.write(
            f"error: evaluate.py {' '.join(words)}: there is no such command; choose one of {names}, or none\n"
        )
        sys.exit(REFUSED)
    del arguments[1 : 1 + len(words)]
    return subcommand
