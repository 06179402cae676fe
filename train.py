"""Trains: `python train.py arch=parallel task=identity`. See `python train.py --help`."""

from __future__ import annotations

from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from dsd_lightning.cli.errors import run_command
from dsd_lightning.runs.resolvers import register_resolvers

register_resolvers()


@hydra.main(config_path=str(Path(__file__).parent / "conf"), config_name="train", version_base="1.3")
def main(config: DictConfig) -> None:
    """Compose, train, and report where the results are; or, with `plan=true`, only what training would take."""
    from dsd_lightning.planning.of_config import plan
    from dsd_lightning.training.run import report, train

    if config.plan:
        print(plan(config))
        return
    hydra_config = HydraConfig.get()
    run_dir = Path(hydra_config.runtime.output_dir)
    train(config, run_dir, hydra_config.overrides.task)
    print("\n" + report(run_dir))


def command() -> None:
    """Run as a command, also from another folder than the checkout."""
    run_command(main)


if __name__ == "__main__":
    command()
