"""Handles failures in a sweep: a failed run is recorded, the others go on, and the end lists every failure."""

from __future__ import annotations

import logging
import sys
import tempfile
import traceback
from pathlib import Path
from typing import Any

from hydra.core.utils import JobReturn, JobStatus
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig

from dsd_lightning.cli.errors import message_for_user
from dsd_lightning.files.atomic import write_text
from dsd_lightning.runs.folder import FAILURE

log = logging.getLogger(__name__)


class FailureReport(Callback):
    """A Hydra callback (`hydra.callbacks`) that reports each failed run at once, and all of them at the end.

    Hydra itself raises the first failure at the end and does not mention the others. Works with launchers that
    run jobs in other processes or on other machines, as long as these share the sweep's folder. A run that fails alone,
    without a sweep, is not touched. `failure.txt` in a failed run's folder holds the message, an empty line and the
    traceback, until the run is started again.
    """

    def __init__(self) -> None:
        self._started = 0.0

    # --- Around each run, in its own process.

    def on_job_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Remove the report of an earlier failure of this run."""
        (Path(config.hydra.runtime.output_dir) / FAILURE).unlink(missing_ok=True)

    def on_job_end(self, config: DictConfig, job_return: JobReturn, **kwargs: Any) -> None:
        """Write and log a failure, and drop the exception, which would keep alive all that the run had in memory."""
        if config.hydra.mode != RunMode.MULTIRUN or job_return.status != JobStatus.FAILED:
            return
        error = job_return._return_value
        message = message_for_user(error) or f"{type(error).__name__}: {error}"
        folder = Path(config.hydra.runtime.output_dir)
        trace = "".join(traceback.format_exception(error))
        write_text(folder / FAILURE, f"{message}\n\n{trace}")
        log.error("%s failed: %s\n(The traceback: %s)", folder, message, folder / FAILURE)
        # Hydra would raise it at the end of the sweep; `on_multirun_end` reports all failures.
        job_return._return_value, job_return.status = None, JobStatus.COMPLETED

    # --- Around the sweep.

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Note the time, by the clock of the file system that the runs write to."""
        folder = Path(config.hydra.sweep.dir)
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=folder) as now:
            self._started = Path(now.name).stat().st_mtime

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        """List the runs that failed since the sweep was started, and end with exit code 1; do nothing if none did.

        Raises:
            SystemExit: if a run failed.
        """
        root = Path(config.hydra.sweep.dir)
        failed = [path for path in sorted(root.rglob(FAILURE)) if path.stat().st_mtime >= self._started]
        if not failed:
            return
        lines = [f"  {path.parent.relative_to(root)}: {path.read_text().splitlines()[0]}" for path in failed]
        sys.stderr.write(f"\n{len(failed)} of the runs in {root} failed:\n" + "\n".join(lines) + "\n")
        sys.stderr.write("The same command repeats them, if it has ckpt=auto, and leaves finished ones alone.\n")
        sys.exit(1)
