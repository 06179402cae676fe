"""Runs a script in the two processes of a distributed job, as torchrun does, with their imports done."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from lightning.pytorch.utilities import rank_zero_only

from support.commands import ROOT, environment
from support.processes import prepared

GRACE = 30.0
"""Seconds that torchrun leaves a process after its SIGTERM before it kills it."""


def take_rank() -> None:
    """Let Lightning know this process's rank: it reads the variable on import, which a fork has done before."""
    rank_zero_only.rank = int(os.environ["RANK"])


def two_ranks(script: str, *arguments: str | Path, timeout: float = 400) -> subprocess.CompletedProcess[str]:
    """Run `script`, which begins by `take_rank`, as ranks 0 and 1, which find each other by torchrun's variables.

    As soon as one of them fails, the other is stopped, as by torchrun.

    Returns:
        What both have written, and 1 as the exit status if one of them failed.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    path = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    job = {
        "WORLD_SIZE": "2",
        "LOCAL_WORLD_SIZE": "2",
        "GROUP_RANK": "0",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": port,
    }
    job |= {"TORCHELASTIC_RUN_ID": "test", "PYTHONPATH": path}
    given = [sys.executable, script, *map(str, arguments)]
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as errors:
        ranks = [
            prepared.start(given, env=environment(**job, RANK=rank, LOCAL_RANK=rank), stdout=out, stderr=errors)
            for rank in ("0", "1")
        ]
        end = time.monotonic() + timeout
        while any(rank.poll() is None for rank in ranks) and not any(rank.poll() for rank in ranks):
            if time.monotonic() > end:
                break
            time.sleep(0.02)
        for rank in ranks:
            rank.terminate()
        for rank in ranks:
            try:
                rank.wait(GRACE)
            except subprocess.TimeoutExpired:
                rank.kill()
                rank.wait()
        for written in (out, errors):
            written.seek(0)
        return subprocess.CompletedProcess(
            given, int(any(rank.returncode for rank in ranks)), out.read(), errors.read()
        )
