"""A `python` for shells, whose commands are forks of a process with its imports done.

`ShellPython` writes a program `python` that comes first on a shell's PATH. The program, this module run as a script, asks the
process that wrote it for the command and lends it its streams; folder, environment, signals and exit status are the command's.
"""

from __future__ import annotations

import os
import pickle
import signal
import socket
import sys
import tempfile
import threading
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from support.processes import prepared

FORWARDED = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


class ShellPython:
    """The program, and the threads that answer it while the context is entered.

    Args:
        by: forks the commands; by default the server of this project.
        more: returns what is appended to the arguments of Python.
    """

    def __init__(
        self,
        by: prepared.Server | None = None,
        more: Callable[[Sequence[str]], Sequence[str]] = lambda arguments: (),
    ) -> None:
        self.by, self.more = by, more
        self._folder = tempfile.TemporaryDirectory()
        program, address = Path(self._folder.name) / "bin" / "python", Path(self._folder.name) / "asked"
        program.parent.mkdir()
        program.write_text(f'#!/bin/sh\nexec {sys.executable} -I -S {__file__} {address} "$@"\n')
        program.chmod(0o755)
        self._listening = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._listening.bind(str(address))
        self._listening.listen()
        self.path = f"{program.parent}{os.pathsep}{os.environ['PATH']}"

    def __enter__(self) -> ShellPython:
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._listening.shutdown(socket.SHUT_RDWR)
        self._listening.close()
        self._folder.cleanup()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listening.accept()
            except OSError:  # closed
                return
            threading.Thread(target=self._answer, args=(connection,), daemon=True).start()

    def _answer(self, connection: socket.socket) -> None:
        from support.processes import prepared  # not at the top: the program runs without this project's path

        with connection:
            message, streams, *_ = socket.recv_fds(connection, 1 << 20, 3)
            arguments, folder, environment = pickle.loads(message)
            command = [sys.executable, *arguments, *self.more(arguments)]
            stdin, stdout, stderr = streams
            process = prepared.start(
                command, cwd=folder, env=environment, stdin=stdin, stdout=stdout, stderr=stderr, by=self.by
            )
            for stream in streams:
                os.close(stream)
            connection.send(str(process.pid).encode())
            connection.send(str(process.wait()).encode())


def ask(address: str, arguments: list[str]) -> int:
    """Let the command run, and return its exit status; end by the signal that it ended by."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as connection:
        connection.connect(address)
        message = pickle.dumps((arguments, os.getcwd(), dict(os.environ)))
        socket.send_fds(connection, [message], [0, 1, 2])
        pid = int(connection.recv(16))
        for number in FORWARDED:
            signal.signal(number, lambda received, _: os.kill(pid, received))
        status = int(connection.recv(16))
    if status < 0:
        signal.signal(-status, signal.SIG_DFL)
        os.kill(os.getpid(), -status)
    return status


if __name__ == "__main__":
    sys.exit(ask(sys.argv[1], sys.argv[2:]))
