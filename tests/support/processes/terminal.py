"""Runs a command in a pseudo-terminal, and follows what the terminal shows."""

from __future__ import annotations

import os
import pty
import re
import termios
from collections.abc import Sequence

from support.commands import environment
from support.processes import prepared

COLUMNS, LINES = 160, 40


def recorded(command: Sequence[str], **variables: str | None) -> tuple[int, str]:
    """Run a command whose three streams are a terminal; return its exit code and all that was written to it."""
    ours, theirs = pty.openpty()
    termios.tcsetwinsize(theirs, (LINES, COLUMNS))
    process = prepared.start(command, env=environment(**variables), stdin=theirs, stdout=theirs, stderr=theirs)
    os.close(theirs)
    written = b""
    try:
        while data := os.read(ours, 1 << 14):
            written += data
    except OSError:  # their end is closed
        pass
    os.close(ours)
    return process.wait(), written.decode()


def screen(text: str) -> list[str]:
    """Return the lines that a terminal shows after `text`.

    Carriage returns, line feeds, cursor-up and erasing to the end of a line are followed; colours are left out.
    """
    lines, row, column = [""], 0, 0
    for token in re.findall(r"\x1b\[[\d;?]*[A-Za-z]|.", text, re.DOTALL):
        if token.startswith("\x1b"):
            if token.endswith("A"):
                row = max(0, row - int(token[2:-1] or 1))
            elif token.endswith("K"):
                lines[row] = lines[row][:column]
        elif token == "\r":
            column = 0
        elif token == "\n":
            row += 1
            lines += [""] * (row + 1 - len(lines))
        else:
            lines[row] = lines[row].ljust(column)[:column] + token + lines[row][column + 1 :]
            column += 1
    return [line.rstrip() for line in lines]
