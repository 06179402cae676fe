"""What does `python distill.py` do? Everything that is not done yet, then the report; or it says what that would take."""

from __future__ import annotations

from pathlib import Path

from omegaconf import DictConfig

from dsd_lightning.distillation.expectation import expect, table
from dsd_lightning.distillation.report import write_report
from dsd_lightning.distillation.runner import STAGES, Distillation


def distill(config: DictConfig) -> str:
    """Run, and return what to tell the user."""
    if config.dry_run:
        return table(expect(config))
    run = Distillation(config)
    samples = run.run()
    beside = Path(config.beside) if config.beside is not None else None
    page = write_report(run.store.root, STAGES, samples, beside)
    if not samples:
        return f"report    {page}\nThe shards are not made yet: run without until=... and executor.tasks=..."
    train = Path(config.shards.root) / "train"
    numbers = ", ".join(f"{number} samples in {name}" for name, number in samples.items())
    lines = (
        f"report         {page}",
        f"shards         {config.shards.root}: {numbers}",
        f"train on them  python train.py data=shards data.root={train}",
    )
    return "\n".join(lines)
