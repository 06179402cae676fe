"""Score a model: `python evaluate.py`. See `python evaluate.py --help`, which also names the other verbs."""

from __future__ import annotations

import sys

import hydra
from omegaconf import DictConfig

from dsd_lightning.cli.errors import run_verb
from dsd_lightning.evaluation.subcommands import taken_from
from dsd_lightning.runs.folder import register_resolvers

register_resolvers()
VERB = taken_from(sys.argv)


@hydra.main(config_path="conf", config_name=VERB.config, version_base="1.3")
def main(config: DictConfig) -> None:
    """Compose, do what the verb says, say what came of it."""
    print(VERB.run(config))


if __name__ == "__main__":
    run_verb(main)
