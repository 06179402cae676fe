"""The command `python distill.py`: runs what is not done yet, then writes the report; or estimates what that would take."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol, runtime_checkable

from hydra.utils import instantiate
from omegaconf import DictConfig

from dsd_lightning.cli.console import tidy
from dsd_lightning.cli.settings import check_settings
from dsd_lightning.distillation.expectation import expect, outlook, table
from dsd_lightning.distillation.records import NothingKept
from dsd_lightning.distillation.report import write_report
from dsd_lightning.distillation.runner import STAGES, Distillation


@runtime_checkable
class SetEncoder(Protocol):
    """Stage 9: encodes the sets of shards, so that training runs no encoder."""

    def encode(self, images: Path) -> Path:
        """Encode the set in a folder, unless that was done; return the folder of the encoded set.

        Raises:
            ValueError: encodings of other encoders are in its place.
        """
        ...


def distill(config: DictConfig) -> str:
    """Run, and return the text to print.

    Raises:
        SettingError: a value of the configuration that cannot be meant.
        NothingKept: a stage kept no record; the report is written.
    """
    check_settings(config)
    tidy()
    if config.dry_run:
        expected = expect(config)
        return f"{outlook(config, expected)}\n{table(expected)}"
    run = Distillation(config)
    beside = Path(config.beside) if config.beside is not None else None
    try:
        samples = run.run()
    except NothingKept as error:
        page = write_report(run.store.root, STAGES, {}, beside)
        raise NothingKept(f"{error}\nreport    {page}") from None
    page = write_report(run.store.root, STAGES, samples, beside)
    if not samples:
        return f"report    {page}\nThe shards are not made yet: run without until=... and executor.tasks=..."
    shards = root = Path(config.shards.root)
    encoded = ""
    numbers = ", ".join(f"{number} samples in {name}" for name, number in samples.items())
    lines = [f"report         {page}", f"shards         {shards}: {numbers}"]
    if config.encode:
        encoder: SetEncoder = instantiate(config.encoding)
        for name in samples:
            root = encoder.encode(shards / name).parent
        encoded = " data.datamodule.source.encoded=true"
        lines.append(f"encoded        {root}, for training with the same arch, task and base")
    lines.append(f"train on them  python train.py data=shards data.root={root / 'train'}{encoded}")
    return "\n".join(lines)
