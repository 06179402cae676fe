"""Lets SIGTERM end a process at once, where nothing has to be saved."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import lightning as L


@contextmanager
def sigterm_ends_at_once(trainer: L.Trainer | None = None) -> Iterator[None]:
    """Have SIGTERM end the process within the block, with the exit status that shells give for it.

    Lightning's handler waits for the end of the first training step, which encoding the pairs may delay by many minutes. Only
    the main thread can listen; in any other nothing changes.

    Args:
        trainer: a SIGTERM that it received before the block ends the process too.

    Raises:
        SystemExit: 143, on SIGTERM.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def end(number: int, frame: FrameType | None) -> None:
        raise SystemExit(128 + number)

    before = signal.signal(signal.SIGTERM, end)
    try:
        if trainer is not None and trainer.received_sigterm:
            end(signal.SIGTERM, None)
        yield
    finally:
        signal.signal(signal.SIGTERM, before if before is not None else signal.SIG_DFL)
