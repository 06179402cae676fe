"""How is the offline judge asked over HTTP within one command? The local protocol server, in a process beside this one."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from dsd_lightning.evaluation.errors import EvaluationError


@contextmanager
def served(script: str) -> Iterator[str]:
    """Run the server with a script and yield its address; it ends with the block.

    Raises:
        EvaluationError: it does not start.
    """
    command = [sys.executable, "-m", "dsd_lightning.agents.server", "--port", "0", "--script", script]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        if not line.startswith("http://"):
            raise EvaluationError(f"the local server did not start: {' '.join(command[1:])}")
        yield line.split()[0]
    finally:
        process.terminate()
        process.wait()
