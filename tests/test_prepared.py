"""A command that is forked from a process with its imports done ends as one that an interpreter starts."""

from __future__ import annotations

import functools
import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from support.commands import ROOT, environment
from support.processes import prepared

TELLS = """
import json, os, signal, sys, threading

facts = {
    "arguments": sys.argv, "folder": os.getcwd(), "name": __name__, "path": sys.path, "original": sys.orig_argv,
    "environment": dict(os.environ), "input": sys.stdin.read(), "interrupt": str(signal.getsignal(signal.SIGINT)),
    "group": os.getpgrp(), "threads": threading.active_count(), "descriptors": len(os.listdir("/proc/self/fd")),
    "buffered": sys.stdout.line_buffering,
}
print(json.dumps(facts))
print("to the other stream", file=sys.stderr)
sys.exit(7)
"""


def plainly(args: list[str], folder: Path, variables: dict[str, str]) -> subprocess.CompletedProcess[str]:
    # As from a terminal: a shell lets its background jobs, such as this suite, ignore Ctrl-C.
    heard = functools.partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    return subprocess.run(
        args, cwd=folder, env=variables, stdin=subprocess.DEVNULL, capture_output=True, text=True, preexec_fn=heard
    )


@pytest.mark.parametrize("kind", ["script", "module", "code"])
def test_a_fork_is_as_a_start(kind: str, tmp_path: Path) -> None:
    (tmp_path / "tells.py").write_text(TELLS)
    given = {"script": ["tells.py"], "module": ["-m", "tells"], "code": ["-c", TELLS]}[kind]
    args = [sys.executable, *given, "--flag", "a value"]
    variables = environment(PYTHONPATH=f"{ROOT / 'tests'}{os.pathsep}{tmp_path}", WANDB_MODE="disabled")
    expected = plainly(args, tmp_path, variables)
    ended = prepared.run(args, cwd=tmp_path, env=variables)
    assert isinstance(prepared.start(args, cwd=tmp_path, env=variables), prepared.Fork)
    assert (ended.returncode, ended.stderr) == (expected.returncode, expected.stderr) == (7, "to the other stream\n")
    assert json.loads(ended.stdout) == json.loads(expected.stdout)


def test_the_imports_are_done() -> None:
    ended = prepared.run([sys.executable, "-c", "import sys; print('lightning' in sys.modules)"], env=environment())
    assert ended.stdout == "True\n"


@pytest.mark.parametrize(
    ("code", "status"),
    [
        ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", -signal.SIGKILL),
        ("raise KeyboardInterrupt", -signal.SIGINT),
        ("raise ValueError('wrong')", 1),
        ("import atexit; atexit.register(print, 'the end')", 0),
    ],
)
def test_it_ends_as_a_start_ends(code: str, status: int) -> None:
    args = [sys.executable, "-c", code]
    ended, expected = prepared.run(args, env=environment()), plainly(args, ROOT, environment())
    assert (ended.returncode, ended.stdout) == (expected.returncode, expected.stdout)
    assert ended.returncode == status
    assert ended.stderr.splitlines()[-1:] == expected.stderr.splitlines()[-1:]


def test_it_takes_signals_and_can_be_waited_for() -> None:
    code = "import signal, sys\nsys.stderr.write('ready\\n')\nsignal.pause()"
    with prepared.start([sys.executable, "-c", code], env=environment(), stderr=subprocess.PIPE, text=True) as waiting:
        assert waiting.stderr is not None
        assert waiting.stderr.readline() == "ready\n"
        assert waiting.poll() is None
        with pytest.raises(subprocess.TimeoutExpired):
            waiting.wait(0.01)
        threading.Timer(0.05, waiting.send_signal, [signal.SIGTERM]).start()
        assert waiting.wait() == -signal.SIGTERM


@pytest.mark.parametrize(
    ("arguments", "variables"),
    [(["-X", "importtime", "train.py"], {}), (["train.py"], {"OMP_NUM_THREADS": "2"}), (["train.py"], {"LC_ALL": "C"})],
)
def test_what_is_read_on_import_starts_an_interpreter(arguments: list[str], variables: dict[str, str]) -> None:
    assert not prepared.server().can_fork(arguments, environment(**variables))
