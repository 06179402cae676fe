"""Make the paired data: `python distill.py`. See `python distill.py --help`."""

from __future__ import annotations

from pathlib import Path

import hydra
from omegaconf import DictConfig

from dsd_lightning.cli.errors import run_command
from dsd_lightning.runs.resolvers import register_resolvers

register_resolvers()


@hydra.main(config_path=str(Path(__file__).parent / "conf"), config_name="distill", version_base="1.3")
def main(config: DictConfig) -> None:
    """Compose, make what is not there yet, say where it is; or, with `dry_run=true`, only what it would take."""
    from dsd_lightning.distillation.command import distill

    print("\n" + distill(config))


def command() -> None:
    """Run as a command, also from another folder than the checkout."""
    run_command(main)


if __name__ == "__main__":
    command()
