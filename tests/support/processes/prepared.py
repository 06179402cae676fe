"""Starts commands in processes whose imports are done: forks of one that imported what most commands import.

Importing PyTorch, Lightning and diffusers takes 7 CPU seconds, more than most tests let a command work. A fork is a process of
its own all the same: arguments, folder, environment, streams, signals and exit status are those of the real command. What
differs is when libraries were imported. So an interpreter is started where they would read a changed variable on import
(`Server.can_fork`), where Python gets options, and on systems without pidfds.

Run as a script, this module is the server: it keeps one thread, and forks as often as its socket asks for.
"""

from __future__ import annotations

import functools
import gc
import importlib
import os
import pickle
import runpy
import select
import selectors
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, Any

ROOT = Path(__file__).parents[3]

LIBRARIES = (
    "lightning.pytorch",
    "diffusers.models.autoencoders.autoencoder_kl",
    "diffusers.models.transformers.transformer_flux",
    "transformers.models.clip.modeling_clip",
    "transformers.models.t5.modeling_t5",
    "dsd_lightning.training.run",
    "dsd_lightning.pipeline.loading",
    "dsd_lightning.distillation.command",
    "dsd_lightning.generation.command",
    "dsd_lightning.evaluation.command",
)
"""Imported by the server; none of them starts a thread, which a fork would not have."""

READ_LATE = (
    *("WANDB_", "HYDRA_", "TRACKIO_", "PYTHONPATH", "TMPDIR", "HOME", "PATH", "COLUMNS", "PYTEST_"),
    # What runs in this process leave behind: Lightning's seeds and checks, PyTorch's folder of kernels.
    *("PL_", "PYTORCH_NVML_BASED_CUDA_CHECK", "TORCHINDUCTOR_CACHE_DIR", "TOKENIZERS_PARALLELISM"),
    # Of shells, and of the project's scripts.
    *("_", "PWD", "OLDPWD", "SHLVL", "OUT", "IMAGES", "PACK", "TEXT", "EXPERIMENT", "BASE", "PAIRS", "TRAIN"),
    # Of a rank, which `ranks.take_rank` tells Lightning.
    *(
        "MASTER_",
        "NODE_RANK",
        "LOCAL_RANK",
        "GROUP_RANK",
        "RANK",
        "WORLD_SIZE",
        "LOCAL_WORLD_SIZE",
        "TORCHELASTIC_RUN_ID",
    ),
)
"""Beginnings of the names of variables that these libraries do not read on import. (Those of keys end with API_KEY.)"""

Stream = int | IO[Any] | None


class Fork:
    """A command that the server forked: the part of `subprocess.Popen` that tests use."""

    def __init__(
        self, args: Sequence[str], pid: int, status: int, stdout: IO[Any] | None, stderr: IO[Any] | None
    ) -> None:
        self.args, self.pid, self.stdout, self.stderr = args, pid, stdout, stderr
        self.returncode: int | None = None
        self._status = status

    def poll(self) -> int | None:
        """Return the exit status, negative after a signal; None while the command runs."""
        return self._look(0)

    def wait(self, timeout: float | None = None) -> int:
        """Wait for the end and return the exit status.

        Raises:
            subprocess.TimeoutExpired: if it does not end within `timeout` seconds.
        """
        code = self._look(timeout)
        if code is None:
            raise subprocess.TimeoutExpired(self.args, timeout or 0)
        return code

    def send_signal(self, number: int) -> None:
        """Send a signal, unless the command has ended."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def terminate(self) -> None:
        """Send SIGTERM."""
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """Send SIGKILL."""
        self.send_signal(signal.SIGKILL)

    def _look(self, timeout: float | None) -> int | None:
        if self.returncode is None and select.select([self._status], [], [], timeout)[0]:
            status = os.read(self._status, 16)
            os.close(self._status)
            if not status:
                raise RuntimeError("the process that forks commands has died")
            self.returncode = os.waitstatus_to_exitcode(int(status))
        return self.returncode

    def __enter__(self) -> Fork:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for stream in (self.stdout, self.stderr):
            if stream is not None:
                stream.close()
        self.wait()


Process = Fork | subprocess.Popen[Any]


class Server:
    """The process that forks. It ends when this process does, or closes it.

    Args:
        root: folder of the project whose modules it imports.
    """

    def __init__(self, root: Path = ROOT) -> None:
        self.environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        self._asking = threading.Lock()
        self.socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            self.process = subprocess.Popen(
                [sys.executable, __file__, str(theirs.fileno()), root],
                cwd=root,
                env={name: value for name, value in self.environment.items() if name != "PYTHONPATH"},
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
            )

    def can_fork(self, arguments: Sequence[str], environment: Mapping[str, str]) -> bool:
        """Return whether a fork is as `python ARGUMENTS` with `environment`: nothing on import depends on what differs."""
        if not arguments or (arguments[0].startswith("-") and arguments[0] not in ("-m", "-c")):
            return False
        changed = (name for name, _ in self.environment.items() ^ environment.items())
        return all(name.startswith(READ_LATE) or name.endswith("API_KEY") for name in changed)

    def fork(
        self, args: Sequence[str], folder: str, environment: Mapping[str, str], streams: Sequence[Stream], text: bool
    ) -> Fork:
        """Fork a command and return it. `streams`: its three, as `subprocess.Popen` takes them."""
        ours: list[IO[Any] | None] = []
        theirs: list[int] = []
        opened: list[int] = []
        for number, stream in enumerate(streams):
            mine = None
            if stream == subprocess.PIPE:
                reading, end = os.pipe()
                mine = os.fdopen(reading, "r" if text else "rb")
                opened.append(end)
            elif stream == subprocess.DEVNULL:
                end = os.open(os.devnull, os.O_RDWR)
                opened.append(end)
            elif stream == subprocess.STDOUT:
                end = theirs[1]
            elif stream is None:
                end = number
            else:
                end = stream if isinstance(stream, int) else stream.fileno()
            ours.append(mine)
            theirs.append(end)
        status, writing = os.pipe()
        message = pickle.dumps((list(args[1:]), folder, dict(environment)))
        with self._asking:
            socket.send_fds(self.socket, [message], [*theirs, writing])
            pid = int(self.socket.recv(16))
        for each in (*opened, writing):
            os.close(each)
        return Fork(args, pid, status, ours[1], ours[2])

    def close(self) -> None:
        """End it, after the commands that it has forked."""
        self.socket.close()
        self.process.wait()


@functools.cache
def server() -> Server:
    """Return this process's server, started by the first call."""
    return Server()


def start(
    args: Sequence[str],
    *,
    cwd: str | Path = ROOT,
    env: Mapping[str, str],
    stdin: Stream = subprocess.DEVNULL,
    stdout: Stream = None,
    stderr: Stream = None,
    text: bool = False,
    by: Server | None = None,
) -> Process:
    """Start `python ARGUMENTS`, as `subprocess.Popen` does; `by` forks it, by default the server of this project."""
    if hasattr(os, "pidfd_open") and args[0] == sys.executable and (by or server()).can_fork(args[1:], env):
        return (by or server()).fork(args, str(cwd), env, (stdin, stdout, stderr), text)
    return subprocess.Popen(args, cwd=cwd, env=env, stdin=stdin, stdout=stdout, stderr=stderr, text=text)


def run(
    args: Sequence[str], *, cwd: str | Path = ROOT, env: Mapping[str, str], timeout: float = 600
) -> subprocess.CompletedProcess[str]:
    """Run `python ARGUMENTS` and return its output and exit status, as `subprocess.run(capture_output=True)` does."""
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as errors:
        process = start(args, cwd=cwd, env=env, stdout=out, stderr=errors)
        try:
            code = process.wait(timeout)
        finally:
            process.kill()
            process.wait()
        out.seek(0)
        errors.seek(0)
        return subprocess.CompletedProcess(args, code, out.read(), errors.read())


# --- In the server.

Request = tuple[list[str], str, dict[str, str]]
"""The arguments of Python, the folder and the environment of a command."""


def serve(connection: socket.socket) -> tuple[Request, list[int]] | None:
    """Fork as requested. Return the request and the three streams in the fork, None in the server once nobody asks."""
    children = selectors.DefaultSelector()
    children.register(connection, selectors.EVENT_READ)
    while True:
        for key, _ in children.select():
            if key.fileobj is connection:
                message, received, *_ = socket.recv_fds(connection, 1 << 20, 4)
                if not message:
                    return None
                *streams, status = received
                pid = os.fork()
                if pid == 0:
                    others = [other for other in children.get_map().values() if other.data is not None]
                    for descriptor in (status, *(each for other in others for each in (other.fd, other.data[1]))):
                        os.close(descriptor)
                    children.close()
                    connection.close()
                    return pickle.loads(message), streams
                connection.send(str(pid).encode())
                for stream in streams:
                    os.close(stream)
                children.register(os.pidfd_open(pid), selectors.EVENT_READ, (pid, status))
            else:
                pid, status = key.data
                children.unregister(key.fd)
                os.close(key.fd)
                _, ended = os.waitpid(pid, 0)
                os.write(status, str(ended).encode())
                os.close(status)


def become(request: Request, streams: list[int], search_path: list[str]) -> None:
    """Turn this fork into the command, as an interpreter would start it."""
    arguments, folder, environment = request
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    tempfile.tempdir = None
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
    for stream in set(streams) - {0, 1, 2}:
        os.close(stream)
    sys.stdout.reconfigure(line_buffering=os.isatty(1))  # type: ignore[union-attr]
    sys.orig_argv = [sys.executable, *arguments]
    kind = arguments[0] if arguments[0] in ("-m", "-c") else None
    sys.argv = arguments if kind is None else [kind, *arguments[2:]]
    first = {None: str(Path(arguments[0]).resolve().parent), "-m": folder, "-c": ""}[kind]
    given = [each for each in environment.get("PYTHONPATH", "").split(os.pathsep) if each]
    libraries = next(
        index for index, each in enumerate(search_path) if each.endswith(".zip")
    )  # Python's own; from here on
    sys.path[:] = [first, *search_path[:libraries], *given, *search_path[libraries:]]
    importlib.invalidate_caches()
    if kind is None:
        runpy.run_path(arguments[0], run_name="__main__")
    elif kind == "-m":
        runpy.run_module(arguments[1], run_name="__main__", alter_sys=True)
    else:
        exec(compile(arguments[1], "<string>", "exec"), {"__name__": "__main__", "__builtins__": __builtins__})


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a Ctrl-C is for the commands, and for pytest
    search_path = sys.path[1:]
    sys.path[0] = sys.argv[2]
    for library in LIBRARIES:
        importlib.import_module(library)
    gc.collect()
    gc.freeze()  # so that collections in forks do not copy what all share
    requested = serve(socket.socket(fileno=int(sys.argv[1])))
    if requested is not None:
        become(*requested, search_path)
