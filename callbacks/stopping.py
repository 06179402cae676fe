"""Lets a run end in order when it is stopped (SIGTERM from a scheduler, Ctrl-C from a person)."""

from __future__ import annotations

import logging
import signal
import threading
from types import FrameType
from typing import Any

log = logging.getLogger(__name__)


class Stopped(SystemExit):
    """Ends the process after a requested stop, with the exit code that shells give for the signal (128 + its number)."""


class Diverged(RuntimeError):
    """Training cannot go on from where it is; the message says why, and what to do.

    Attributes:
        last_good: the last optimizer step whose state is worth keeping.
    """

    def __init__(self, message: str, last_good: int) -> None:
        super().__init__(message)
        self.last_good = last_good


class StopRequest:
    """Notes SIGTERM and Ctrl-C, and does nothing else in the handler; a second Ctrl-C stops at once.

    Lightning's own SIGTERM handler talks to the other processes from inside the handler, which hangs when a process other
    than the first gets the signal; this one replaces it from `install` to `remove`.
    """

    def __init__(self) -> None:
        self.received: int = 0
        self._before: dict[int, Any] = {}

    def install(self) -> None:
        """Listen; only the main thread of a process can."""
        if threading.current_thread() is not threading.main_thread() or self._before:
            return
        self.received = 0
        for number in (signal.SIGTERM, signal.SIGINT):
            self._before[number] = signal.signal(number, self._note)

    def remove(self) -> None:
        """Put the earlier handlers back."""
        for number, handler in self._before.items():
            signal.signal(number, handler if handler is not None else signal.SIG_DFL)
        self._before = {}

    def _note(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and self.received == signal.SIGINT:
            raise Stopped(128 + number)
        self.received = max(self.received, number)
