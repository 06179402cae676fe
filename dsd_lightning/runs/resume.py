"""What is left to do in a run's folder, and is anybody at it? What `ckpt=auto` asks before a run starts."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lightning.pytorch.utilities import rank_zero_only
from omegaconf import DictConfig, OmegaConf

from dsd_lightning.checkpoints.folder_io import list_steps
from dsd_lightning.runs.folder import CONFIG, SUMMARY, flattened, may_differ

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
    steps = list_steps(run_dir / "checkpoints")
    return bool(summary.get("finished")) and (not steps or max(steps) == summary["steps"])


def _plain(config: DictConfig) -> dict[str, Any]:
    plain = OmegaConf.to_container(config, resolve=False)
    assert isinstance(plain, dict)
    return {str(key): value for key, value in plain.items() if key != "hydra"}


def require_same(config: DictConfig, run_dir: Path) -> None:
    """Do nothing if `run_dir` holds no run or one of this configuration.

    Raises:
        OtherRunError: naming up to four settings that differ, with both values.
    """
    path = run_dir / CONFIG
    if not path.exists():
        return
    saved = OmegaConf.load(path)
    assert isinstance(saved, DictConfig)
    before, now = flattened(_plain(saved)), flattened(_plain(config))
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


@rank_zero_only
def record(config: DictConfig, run_dir: Path) -> None:
    """Write the configuration that the run starts with, for `require_same`."""
    run_dir.mkdir(parents=True, exist_ok=True)
    beside = run_dir / f".{CONFIG}.partial"
    OmegaConf.save(OmegaConf.create(_plain(config)), beside)
    os.replace(beside, run_dir / CONFIG)


@contextmanager
def claim(run_dir: Path) -> Iterator[bool]:
    """Hold `run_dir` for this process, and yield whether it could be had; the system lets go of it if the process dies.

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
