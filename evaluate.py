"""Score a model: `python evaluate.py`. See `python evaluate.py --help`, which also names the other commands."""

from __future__ import annotations

import sys

import hydra
from omegaconf import DictConfig

from dsd_lightning.cli.errors import run_command
from dsd_lightning.evaluation.subcommands import taken_from
from dsd_lightning.runs.folder import register_resolvers

register_resolvers()
SUBCOMMAND = taken_from(sys.argv)


@hydra.main(config_path="conf", config_name=SUBCOMMAND.config, version_base="1.3")
def main(config: DictConfig) -> None:
    """Compose, do what the command says, say what came of it."""
    print(SUBCOMMAND.run(config))


if __name__ == "__main__":
    run_command(main)
