"""Parses flags: unknown ones are refused with the one that was probably meant, numbers out of range by their flag."""

from __future__ import annotations

import argparse
import difflib
import math
from collections.abc import Callable, Iterable
from typing import NoReturn

_UNKNOWN = "unrecognized arguments: "


def nearest(name: str, names: Iterable[str]) -> str | None:
    """Return the known name that is most like `name`; None if none is much like it."""
    matches = difflib.get_close_matches(name, list(names), n=1, cutoff=0.6)
    return matches[0] if matches else None


class Flags(argparse.ArgumentParser):
    """A parser that names the flag which an unknown one is most like."""

    def error(self, message: str) -> NoReturn:
        """End the process with a usage line, the message and the flag that was probably meant."""
        flags = [name for action in self._actions for name in action.option_strings]
        for unknown in message.removeprefix(_UNKNOWN).split() if message.startswith(_UNKNOWN) else ():
            meant = nearest(unknown.partition("=")[0], flags) if unknown.startswith("-") else None
            if meant is not None:
                message += f"; did you mean {meant}?"
                break
        super().error(message)


def whole(least: int, most: int | None = None) -> Callable[[str], int]:
    """Return a `type` of a flag that takes whole numbers from `least` to `most`."""

    def parse(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            value = None
        if value is None or value < least or (most is not None and value > most):
            raise argparse.ArgumentTypeError(f"{text!r} must be a whole number {_ends(least, most)}")
        return value

    return parse


def number(least: int | float, most: int | float | None = None) -> Callable[[str], float]:
    """Return a `type` of a flag that takes finite numbers from `least` to `most`."""

    def parse(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not math.isfinite(value) or value < least or (most is not None and value > most):
            raise argparse.ArgumentTypeError(f"{text!r} must be a number {_ends(least, most)}")
        return value

    return parse


def _ends(least: int | float, most: int | float | None) -> str:
    return f"of at least {least:g}" if most is None else f"from {least:g} to {most:g}"
