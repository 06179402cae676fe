"""Resuming: whether a folder holds a run of the same configuration, is finished, or is in use by another process."""

from __future__ import annotations

import fcntl
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lightning.pytorch.utilities import rank_zero_only
from omegaconf import DictConfig, OmegaConf

from dsd_lightning.checkpoints.folder_io import list_steps
from dsd_lightning.runs.folder import CHECKPOINTS, CONFIG, SUMMARY, flattened, may_differ, plain_config, read_config

LOCK = ".lock"


class OtherRunError(ValueError):
    """The folder holds a run of another configuration; the message names what differs and the remedy."""


def read_summary(run_dir: Path) -> dict[str, Any]:
    """Return the metrics of `summary.json`; empty if there is none."""
    path = run_dir / SUMMARY
    return dict(json.loads(path.read_text())) if path.exists() else {}


def is_finished(run_dir: Path) -> bool:
    """Return whether the run in `run_dir` came to its end.

    Its summary says so, and, if it has checkpoints, the last step is among them: a run that was killed between the two
    repeats what is missing.
    """
    summary = read_summary(run_dir)
    steps = list_steps(run_dir / CHECKPOINTS)
    return bool(summary.get("finished")) and (not steps or max(steps) == summary["steps"])


def require_same(config: DictConfig, run_dir: Path) -> None:
    """Do nothing if `run_dir` holds no run or one of this configuration.

    Raises:
        OtherRunError: naming up to four settings that differ, with both values.
    """
    if not (run_dir / CONFIG).exists():
        return
    recorded: Any = OmegaConf.to_container(read_config(run_dir))
    before, now = flattened(recorded), flattened(plain_config(config, run_dir))
    different = [
        f"{name} was {before.get(name, 'not given')} and is {now.get(name, 'not given')}"
        for name in sorted(before.keys() | now.keys())
        if before.get(name) != now.get(name) and not may_differ(name)
    ]
    if different:
        more = f" (and {len(different) - 4} more)" if len(different) > 4 else ""
        raise OtherRunError(
            f"ckpt=auto, but {run_dir} holds a run of another configuration: {'; '.join(different[:4])}{more}. Give the same "
            "values, another folder (hydra.sweep.dir=..., hydra.sweep.subdir=... or hydra.run.dir=...), or remove this one"
        )


@contextmanager
def claim(run_dir: Path) -> Iterator[bool]:
    """Hold `run_dir` for this process, and yield whether it is free; the system lets go of it if the process dies.

    The first process of a run on several devices claims it for all of them.
    """
    if getattr(rank_zero_only, "rank", 0):
        yield True
        return
    run_dir.mkdir(parents=True, exist_ok=True)
    with (run_dir / LOCK).open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
        else:
            yield True
