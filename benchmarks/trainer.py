"""Measures what Lightning's trainer and our callbacks cost, against a bare loop on the same module and batches.

python -m benchmarks.trainer [--base small|flux_dev] [--batch 2] [--rounds 40] [--no-callbacks] [--out FILE.json]

Both sides make the same steps from the same weights: loss, backward, clipping, AdamW, schedule. The trainer is that of
`train.py`, with the callbacks of `conf/callbacks/minimal.yaml` (EMA, guards, throughput, progress, checkpoints, summary)
and metrics.csv; `--no-callbacks` leaves the trainer alone. The bare loop makes its steps where the trainer asks for its next
batch, so that the two alternate in one process; which one begins a round is drawn each time.
"""

from __future__ import annotations

import random
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import lightning as L
import torch
from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig
from hydra.utils import instantiate

from benchmarks.measure import facts, ratio, spread, wait, write
from benchmarks.random_models import base_dtype, batch_of, module_of
from benchmarks.training_step import bare_step, parser_of
from dsd_lightning.pairs import PairBatch
from dsd_lightning.runs.resolvers import register_resolvers

CONF = Path(__file__).parents[1] / "conf"
WARM_UP = 3
"""Rounds that are not timed."""


class Turns:
    """The trainer's batches; beside each of its steps, the bare loop makes one.

    Attributes:
        taken: seconds of every timed step, of both.
    """

    def __init__(self, batch: PairBatch, bare: Callable[[], None], rounds: int, device: torch.device) -> None:
        self.batch, self.bare, self.device = batch, bare, device
        self.steps = WARM_UP + rounds
        self.taken: dict[str, list[float]] = {"trainer": [], "bare": []}

    def __len__(self) -> int:
        # A step is over when the trainer asks for the next batch: the last one never is.
        return self.steps + 1

    def __iter__(self) -> Iterator[PairBatch]:
        order = random.Random(0)
        for number in range(len(self)):
            # After the trainer's last step nothing is asked for any more.
            bare_first = order.random() < 0.5 or number == self.steps
            if bare_first:
                self._bare_step(number)
            start = self._now()
            yield self.batch
            self._note("trainer", number, start)
            if not bare_first:
                self._bare_step(number)

    def _bare_step(self, number: int) -> None:
        start = self._now()
        self.bare()
        self._note("bare", number, start)

    def _note(self, side: str, number: int, start: float) -> None:
        end = self._now()
        if WARM_UP <= number < self.steps:
            self.taken[side].append(end - start)

    def _now(self) -> float:
        wait(self.device)
        return time.perf_counter()


def trainer_of(folder: Path, steps: int, with_callbacks: bool, device: torch.device) -> L.Trainer:
    """Return the trainer of `train.py` for a run in `folder`."""
    register_resolvers()
    on_cuda = device.type == "cuda"
    choices = [
        "callbacks=minimal",
        "logger=csv",
        f"trainer.max_steps={steps}",
        f"trainer.accelerator={'gpu' if on_cuda else 'cpu'}",
        f"trainer.precision={'bf16-mixed' if on_cuda else '32-true'}",
        f"hydra.runtime.output_dir={folder}",
    ]
    with initialize_config_dir(config_dir=str(CONF), version_base="1.3"):
        config = compose("train", choices, return_hydra_config=True)
    HydraConfig.instance().set_config(config)
    parts: dict[str, Any] = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    if with_callbacks:
        parts = {
            "callbacks": [instantiate(each) for each in config.callbacks.values() if each is not None],
            "logger": [instantiate(each) for each in config.logger.values()],
            "plugins": [instantiate(config.checkpoint_io)],
        }
    trainer: L.Trainer = instantiate(config.trainer, **parts)
    return trainer


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure both, and tell the ratio with its interval."""
    parser = parser_of("trainer", __doc__)
    parser.add_argument("--no-callbacks", action="store_true", help="the trainer alone, without callbacks and logger")
    args = parser.parse_args(arguments)
    device = torch.device(args.device)
    batch = batch_of(args.base, args.batch, device, base_dtype(args))
    modules = []
    for _ in range(2):
        torch.manual_seed(0)
        modules.append(module_of(args.base, batch, args, device))
    turns = Turns(batch, bare_step(modules[0], batch, device).step, args.rounds, device)
    with tempfile.TemporaryDirectory() as scratch:
        trainer = trainer_of(Path(scratch), len(turns), not args.no_callbacks, device)
        trainer.fit(modules[1], turns)
    results = {
        "what": "one training step on cached encodings: Lightning's trainer, with our callbacks unless told otherwise, "
        "against a bare loop on the same module and batches",
        "settings": {key: value for key, value in vars(args).items() if key != "out"},
        **facts(device),
        "seconds_a_step": {name: spread(each) for name, each in turns.taken.items()},
        "trainer_over_bare": ratio(turns.taken["trainer"], turns.taken["bare"]),
    }
    write(args.out, results)


if __name__ == "__main__":
    main()
