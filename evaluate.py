"""Scores a model: `python evaluate.py`. See `python evaluate.py --help`, which also names the other commands."""

from __future__ import annotations

import sys
from pathlib import Path

import hydra
from omegaconf import DictConfig

from dsd_lightning.cli.errors import run_command
from dsd_lightning.evaluation.subcommand_table import pop_subcommand
from dsd_lightning.runs.resolvers import register_resolvers

register_resolvers()
SUBCOMMAND = pop_subcommand(sys.argv)


@hydra.main(config_path=str(Path(__file__).parent / "conf"), config_name=SUBCOMMAND.config, version_base="1.3")
def main(config: DictConfig) -> None:
    """Compose the configuration, run the command and print its result."""
    print(SUBCOMMAND.run(config))


def command() -> None:
    """Run as a command, also from another folder than the checkout."""
    run_command(main)


if __name__ == "__main__":
    command()
