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


FIXED = ("optimizer._target_", "optimizer.matrices", "trainer.accumulate_grad_batches")
"""Settings that may not be changed when a run is resumed: the optimizer's state and the position in the data depend on
them. Architecture and base are compared by the checkpoint's header; all others may be changed."""


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
    different = list(differences(config, run_dir, run_dir).values())
    if different:
        more = f" (and {len(different) - 4} more)" if len(different) > 4 else ""
        raise OtherRunError(
            f"ckpt=auto, but {run_dir} holds a run of another configuration: {'; '.join(different[:4])}{more}. Give the same "
            "values, another folder (hydra.sweep.dir=..., hydra.sweep.subdir=... or hydra.run.dir=...), or remove this one"
        )


def differences(config: DictConfig, run_dir: Path, recorded_in: Path) -> dict[str, str]:
    """Return what differs, by the setting's name as a sentence, from the record of an earlier run.

    Args:
        config: of the run in `run_dir`.
        run_dir: its folder.
        recorded_in: the folder of the earlier run, which may be the same one.

    Raises:
        NoRunError: the record cannot be read.
    """
    recorded: Any = OmegaConf.to_container(read_config(recorded_in))
    before, now = flattened(recorded), flattened(plain_config(config, run_dir))
    return {
        name: f"{name} was {before.get(name, 'not given')} and is {now.get(name, 'not given')}"
        for name in sorted(before.keys() | now.keys())
        if before.get(name) != now.get(name) and not may_differ(name)
    }


def changes_since(config: DictConfig, run_dir: Path, checkpoint: Path) -> list[str]:
    """Return what a run that resumes `checkpoint` has changed, a sentence each; [] where the checkpoint has no record.

    Raises:
        OtherRunError: a changed setting that the checkpoint's state does not fit, with both values.
    """
    recorded_in = checkpoint.absolute().parents[1]
    if not (recorded_in / CONFIG).is_file():
        return []
    changed = differences(config, run_dir, recorded_in)
    for name, sentence in changed.items():
        if name in FIXED:
            raise OtherRunError(
                f"ckpt={config.ckpt} resumes {checkpoint}, but {sentence}: its state fits the earlier value alone. Give that "
                "one, or start from the checkpoint's weights with init_from=CHECKPOINT ckpt=null"
            )
    return list(changed.values())


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
