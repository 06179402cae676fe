"""What two processes train together, to be compared with one: every strategy, over gloo on the CPU.

`python -m torch.distributed.run --nproc-per-node 2 tests/support/models/two_devices.py float SINGLE OUT` writes `OUT/rank0.pt`
and `rank1.pt`; SINGLE holds checkpoints of one process, to be resumed from.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import torch
from diffusers import AutoencoderKL
from hydra.utils import instantiate
from omegaconf import OmegaConf
from torch import nn
from torch.distributed.tensor import DTensor
from torch.utils.data import DataLoader

from callbacks.adapter_checkpoint import AdapterCheckpoint
from callbacks.ema import ExponentialMovingAverage
from callbacks.nonfinite import NonFiniteGuard
from callbacks.throughput import Throughput
from dsd_lightning.checkpoints.folder_io import FolderCheckpointIO, list_steps
from dsd_lightning.compute.dtensors import full_tensor
from dsd_lightning.flux.codec import Codec
from dsd_lightning.flux.quantize import quantize_
from dsd_lightning.flux.text import TextEncoder
from dsd_lightning.module import DiffusionSelfDistillation, Dropout
from dsd_lightning.pairs import PairBatch, Task, TextEmbeddings
from dsd_lightning.randomness import normal
from dsd_lightning.rectified_flow import NoShift, Uniform
from dsd_lightning.sampler import SamplerSettings
from support.commands import ROOT, environment
from support.models.architecture_rows import ROWS, base
from support.tiny_run import Recorder

CONF = Path(__file__).parents[3] / "conf" / "trainer" / "strategy"
SHARED = ("ddp", "fsdp", "adapter_shard", "hybrid")
"""Strategies of several devices."""

OTHERS = (
    *("concat", "controlnet", "reference_tokens", "reference_tokens-separate_pass", "ip_adapter-with_lora"),
    *("ip_adapter_plus", "text_only-whole"),
)
NOT_SHARDABLE = ("reference_tokens-separate_pass",)
"""Rows of `ROWS` beside `parallel`; and those that only whole replicas can train."""

IS_SHARDED = ("adapter_shard", "hybrid")
"""Strategies whose checkpoints each process writes its pieces of, in the background."""

WHOLE_BASE = ("ddp", "adapter_shard")
"""Strategies under which the base may be in 8 bits."""

CLOSE = 1e-5
"""Greatest difference between what one process and two compute."""

CRASH = "(SIGSEGV)"
"""What torchrun says of a process that the operating system ended for an invalid access."""

PAIRS, STEPS, HALF = 4, 20, 10
"""Pairs a global batch; optimizer steps of a run, and of the checkpoint in its middle."""


def strategy(name: str) -> Any:
    """Return what `trainer/strategy=NAME` builds; `hybrid` as if each process were a node."""
    config = OmegaConf.load(CONF / f"{'fsdp' if name == 'hybrid' else name}.yaml").strategy
    if name == "hybrid":
        config.replicas = 2
    return config if isinstance(config, str) else instantiate(config)


class _NoWords(TextEncoder):
    def __init__(self) -> None:
        nn.Module.__init__(self)

    def null(self, sequence_length: int | None = None) -> TextEmbeddings:
        return TextEmbeddings(torch.zeros(1, 5, 16), torch.zeros(1, 8))


class Batches:
    """This process's share of every global batch."""

    def __init__(self, architecture: Any, length: int, rank: int, world_size: int) -> None:
        self.architecture, self.length = architecture, length
        self.rank, self.world_size, self.position = rank, world_size, 0
        self.codec = Codec(AutoencoderKL(block_out_channels=(4,), norm_num_groups=2, latent_channels=6))

    def __len__(self) -> int:
        return self.length

    def __iter__(self) -> Iterator[PairBatch]:
        while self.position < self.length:
            self.position += 1
            yield self.batch(self.position)

    def batch(self, index: int) -> PairBatch:
        keys = [f"{index}-{each}" for each in range(PAIRS)][self.rank :: self.world_size]
        images = {
            name: torch.stack([normal((3, 8, 8), key, name).clamp(-1, 1) for key in keys])
            for name in ("reference", "target")
        }
        with torch.no_grad():
            encoded = self.architecture.encode(images["reference"], images["target"], self.codec)
        text = TextEmbeddings(
            torch.stack([normal((5, 16), key, "text") for key in keys]),
            torch.stack([normal((8,), key, "pooled") for key in keys]),
        )
        return PairBatch(keys=keys, epochs=[0] * len(keys), prompts=[""] * len(keys), encoded=encoded, text=text)

    def state_dict(self) -> dict[str, int]:
        return {"position": self.position}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.position = state["position"]


class Norms(L.Callback):
    """Notes the norm of all gradients before clipping, by step."""

    def __init__(self) -> None:
        self.norms: dict[int, float] = {}

    def on_before_optimizer_step(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
        gradients = [p.grad for p in pl_module.parameters() if p.grad is not None]
        self.norms[trainer.global_step] = float(full_tensor(torch.nn.utils.get_total_norm(gradients)))


def fit(
    row: str,
    name: str,
    devices: int,
    folder: Path,
    *extra: L.Callback,
    steps: int = STEPS,
    resume: Path | None = None,
    quantize: str | None = None,
) -> dict[str, Any]:
    """Train an architecture and return what became of it, whole."""
    torch.manual_seed(0)
    transformer = base()
    architecture = ROWS[row].build(transformer)
    if quantize is not None:
        quantize_(architecture.shard_units(), quantize)
    weights = {"target": 1.0, "reference": 0.5} if "reference" in architecture.frames else {"target": 1.0}
    module = DiffusionSelfDistillation(
        architecture=architecture,
        codec=Codec(AutoencoderKL(block_out_channels=(4,), norm_num_groups=2, latent_channels=6)),
        text_encoder=_NoWords(),
        task=Task("identity", False, weights),
        density=Uniform(),
        shift=NoShift(),
        dropout=Dropout(0.1, 0.1, 0.1),
        optimizer=partial(torch.optim.AdamW, lr=1e-4),
        schedule=partial(torch.optim.lr_scheduler.LambdaLR, lr_lambda=lambda step: 1.0),
        guidance_scale=3.5,
        sampler=SamplerSettings(num_inference_steps=2),
        seed=0,
    )
    ema, norms, recorder = ExponentialMovingAverage(0.9), Norms(), Losses()
    trainer = L.Trainer(
        max_steps=steps,
        max_epochs=-1,
        accelerator="cpu",
        devices=devices,
        strategy=strategy(name),
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        check_val_every_n_epoch=None,
        val_check_interval=HALF,
        log_every_n_steps=1,
        gradient_clip_val=0.05,
        use_distributed_sampler=False,
        plugins=[FolderCheckpointIO(background=name in IS_SHARDED, sharded=name in IS_SHARDED)],
        callbacks=[
            ema,
            Throughput(),
            norms,
            recorder,
            *extra,
            AdapterCheckpoint(folder / "checkpoints", every_n_steps=HALF, keep=9),
        ],
    )
    batches = Batches(architecture, 4 * steps, trainer.global_rank, trainer.world_size)
    held_out = DataLoader([batches.batch(1001)], batch_size=None)  # type: ignore[arg-type]
    exit_code = None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            trainer.fit(module, batches, held_out, ckpt_path=resume)
        except SystemExit as stop:
            exit_code = stop.code
    trained = {key: value.detach() for key, value in architecture.trainable()}
    return {
        "kinds": {key: type(value).__name__ for key, value in architecture.named_parameters()},
        "trained": {key: full_tensor(value).clone() for key, value in trained.items()},
        "ema": {key: full_tensor(value).clone() for key, value in ema.weights.items()},
        "norms": norms.norms,
        "losses": recorder.losses,
        "exit_code": exit_code,
        "skipped": sum(each.skipped for each in extra if isinstance(each, NonFiniteGuard)),
        "steps": trainer.global_step,
        "checkpoints": [str(path) for path in list_steps(folder / "checkpoints").values()],
    }


class Losses(Recorder):
    """Notes the loss that is logged, the mean over all devices."""

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, *_: Any) -> None:
        self.losses[trainer.fit_loop.epoch_loop.total_batch_idx] = float(trainer.callback_metrics["train/loss"])

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        pass


class Signal(L.Callback):
    """Sends a process SIGTERM in the given batch."""

    def __init__(self, rank: int | None, batch: int = 6) -> None:
        self.rank, self.batch = rank, batch

    def on_train_batch_start(self, trainer: L.Trainer, *_: Any) -> None:
        mine = self.rank in (None, trainer.global_rank)
        if mine and trainer.fit_loop.epoch_loop.total_batch_idx == self.batch:
            os.kill(os.getpid(), signal.SIGTERM)


class Poison(L.Callback):
    """Makes a gradient of the second process NaN in the second step."""

    def on_after_backward(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.global_rank == 1 and trainer.global_step == 1:
            gradients = (p.grad for p in pl_module.parameters() if p.grad is not None)
            pieces = (each.to_local() if isinstance(each, DTensor) else each for each in gradients)
            next(piece for piece in pieces if piece.numel()).view(-1)[0] = float("nan")


def scenarios(single: Path, out: Path) -> Iterator[tuple[str, Callable[[], dict[str, Any]]]]:
    """Yield what two processes do, by name."""
    for name in SHARED:
        yield f"{name}/parallel", partial(fit, "parallel", name, 2, out / name)
        yield (
            f"{name}/resumed",
            partial(
                fit,
                "parallel",
                name,
                2,
                out / f"{name}-resumed",
                resume=single / "parallel" / "checkpoints" / f"step_{HALF:08d}",
            ),
        )
        for row in OTHERS if name != "hybrid" else ():
            if name == "ddp" or row not in NOT_SHARDABLE:
                yield f"{name}/{row}", partial(fit, row, name, 2, out / f"{name}-{row}", steps=3)
    for name in ("ddp", "fsdp"):
        guard = NonFiniteGuard(out / f"nonfinite-{name}")
        yield f"nonfinite/{name}", partial(fit, "parallel", name, 2, out / f"nan-{name}", guard, Poison(), steps=3)
    for rank in (0, 1, None):
        # adapter_shard saves in the background: what a process that exits leaves to its thread must be there all the same.
        name = "adapter_shard" if rank is None else "fsdp"
        yield f"signal/{rank}", partial(fit, "parallel", name, 2, out / f"signal-{rank}", Signal(rank))


def quantized_scenarios(single: Path, out: Path) -> Iterator[tuple[str, Callable[[], dict[str, Any]]]]:
    """Yield what two processes do on a base in 8 bits, by name."""
    for name in WHOLE_BASE:
        yield name, partial(fit, "parallel", name, 2, out / name, steps=3, quantize="int8")


SCENARIOS = {"float": scenarios, "int8": quantized_scenarios}
"""By how the base is stored."""


def main() -> None:
    """Train all of it."""
    stored, single, out = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3])
    results = {name: scenario() for name, scenario in SCENARIOS[stored](single, out)}
    torch.save(results, out / f"rank{os.environ['RANK']}.pt")


def two_processes(stored: str, single: Path, out: Path) -> dict[str, Any]:
    """Train what `SCENARIOS[stored]` says in two processes that talk over gloo; return the results of each rank.

    A crash of the interpreter is tried once more and warned of, with where each thread was: one was met in some fifty runs,
    while the other process waited for a collective. Every other failure is final.
    """
    launched = _launch(stored, single, out)
    if CRASH in launched.stderr:
        warnings.warn(f"one of two processes crashed, and both are started again:\n{launched.stderr}", stacklevel=2)
        shutil.rmtree(out)
        launched = _launch(stored, single, out)
    assert launched.returncode == 0, launched.stderr
    return {f"rank{rank}": torch.load(out / f"rank{rank}.pt", weights_only=True) for rank in (0, 1)}


def _launch(stored: str, single: Path, out: Path) -> subprocess.CompletedProcess[str]:
    out.mkdir(exist_ok=True)
    return subprocess.run(
        [
            *(sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--rdzv-backend", "c10d"),
            *("--rdzv-endpoint", "localhost:0", __file__, stored, single, out),
        ],
        cwd=ROOT,
        env=environment(
            PYTHONPATH=os.pathsep.join([str(ROOT), str(ROOT / "tests"), os.environ.get("PYTHONPATH", "")]),
            PYTHONFAULTHANDLER="1",
        ),
        capture_output=True,
        text=True,
        timeout=850,
    )


def one_process(row: str, folder: Path, steps: int = STEPS, **options: Any) -> dict[str, Any]:
    """Train the same in one process."""
    return fit(row, "single", 1, folder, steps=steps, **options)


def assert_close(left: dict[Any, Any], right: dict[Any, Any]) -> None:
    assert left.keys() == right.keys()
    for name, value in left.items():
        torch.testing.assert_close(
            torch.as_tensor(value), torch.as_tensor(right[name]), rtol=0, atol=CLOSE, msg=str(name)
        )


def assert_same_run(left: dict[str, Any], right: dict[str, Any], first: int = 0) -> None:
    for part in ("trained", "ema"):
        assert_close(left[part], right[part])
    for part in ("norms", "losses"):
        assert_close(left[part], {step: value for step, value in right[part].items() if step >= first})


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
