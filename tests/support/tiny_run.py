"""The real module on a two-block transformer, trained for a few steps, for tests of checkpoints and EMA weights."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import torch
from diffusers import AutoencoderKL, FluxTransformer2DModel
from lightning.pytorch.callbacks import TQDMProgressBar
from torch import nn
from torch.utils.data import DataLoader, Dataset

from callbacks.adapter_checkpoint import AdapterCheckpoint
from callbacks.ema import ExponentialMovingAverage
from callbacks.summary import Summary
from callbacks.throughput import Throughput
from dsd_lightning.architectures.base import Architecture
from dsd_lightning.architectures.parallel import Parallel
from dsd_lightning.architectures.text_only import TextOnly
from dsd_lightning.checkpoints.folder_io import FolderCheckpointIO
from dsd_lightning.flux.codec import Codec
from dsd_lightning.flux.lora import Lora
from dsd_lightning.flux.text import TextEncoder
from dsd_lightning.module import DiffusionSelfDistillation, Dropout
from dsd_lightning.pairs import Encoded, PairBatch, Task, TextEmbeddings
from dsd_lightning.randomness import normal
from dsd_lightning.rectified_flow import NoShift, Uniform
from dsd_lightning.sampler import SamplerSettings

VAL_EVERY = 4
TARGETS = r"(single_)?transformer_blocks\.\d+\.attn\.to_[qv]"


class GivenText(TextEncoder):
    """Stands where batches bring their text along: it only knows the embeddings of no text."""

    def __init__(self) -> None:
        nn.Module.__init__(self)

    def null(self, sequence_length: int | None = None) -> TextEmbeddings:
        return TextEmbeddings(torch.zeros(1, 3, 16), torch.zeros(1, 8))


class _Source(Dataset[PairBatch]):
    def __getitem__(self, index: int) -> PairBatch:
        return make_batch(index)


class Batches:
    """Sized and resumable: batch i depends on nothing but i."""

    def __init__(self, length: int) -> None:
        self.length, self.position = length, 0

    def __len__(self) -> int:
        return self.length

    def __iter__(self) -> Iterator[PairBatch]:
        for batch in DataLoader(_Source(), batch_size=None, sampler=range(self.position, self.length)):
            self.position += 1
            yield batch

    def state_dict(self) -> dict[str, int]:
        return {"position": self.position}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.position = state["position"]


def make_batch(index: int) -> PairBatch:
    return PairBatch(
        keys=[f"{index}a", f"{index}b"],
        epochs=[0, 0],
        prompts=["", ""],
        encoded=Encoded(normal((2, 4, 4, 8), index, "clean"), {"canvas": normal((2, 4, 4, 8), index, "reference")}),
        text=TextEmbeddings(normal((2, 3, 16), index, "text"), normal((2, 8), index, "pooled")),
    )


def make_architecture(
    kind: Callable[..., Architecture] = Parallel, rank: int = 2, layers: int = 1, **lora: Any
) -> Architecture:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        transformer = FluxTransformer2DModel(
            in_channels=16,
            num_layers=layers,
            num_single_layers=1,
            attention_head_dim=16,
            num_attention_heads=2,
            joint_attention_dim=16,
            pooled_projection_dim=8,
            guidance_embeds=False,
            axes_dims_rope=(4, 6, 6),
        )
        return kind(transformer, Lora(rank=rank, targets=TARGETS, **lora))


def make_module(architecture: Architecture | None = None) -> DiffusionSelfDistillation:
    # Dropout inside the factors draws from torch's global generator, which resuming has to restore.
    architecture = architecture or make_architecture(dropout=0.1)
    vae = AutoencoderKL(block_out_channels=(4,), norm_num_groups=2, latent_channels=4)
    return DiffusionSelfDistillation(
        architecture=architecture,
        codec=Codec(vae),
        text_encoder=GivenText(),
        task=Task(
            "identity",
            False,
            {"reference": 0.5, "target": 1.0} if "reference" in architecture.frames else {"target": 1.0},
        ),
        density=Uniform(),
        shift=NoShift(),
        dropout=Dropout(0.1, 0.1, 0.1),
        optimizer=partial(torch.optim.AdamW, lr=1e-2),
        schedule=partial(torch.optim.lr_scheduler.LambdaLR, lr_lambda=lambda step: min(1.0, (step + 1) / 5)),
        guidance_scale=None,
        sampler=SamplerSettings(num_inference_steps=2),
        seed=0,
    )


class Recorder(L.Callback):
    """Notes the loss of every batch, and what validation found, by step."""

    def __init__(self) -> None:
        self.losses: dict[int, float] = {}
        self.validations: dict[int, float] = {}

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, *_: Any) -> None:
        self.losses[trainer.fit_loop.epoch_loop.total_batch_idx] = float(outputs["loss"])

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.validations[trainer.global_step] = float(trainer.callback_metrics["val/loss_right"])


class Run:
    """One process's share of a run in `folder`."""

    def __init__(
        self,
        folder: Path,
        steps: int,
        *extra: L.Callback,
        every: int = 3,
        keep: int = 2,
        accumulate: int = 1,
        written_by: FolderCheckpointIO | None = None,
    ) -> None:
        self.folder, self.recorder, self.batches = folder, Recorder(), steps * accumulate
        self.module = make_module()
        self.ema = ExponentialMovingAverage(0.9)
        self.checkpoint = AdapterCheckpoint(folder / "checkpoints", every_n_steps=every, keep=keep)
        self.trainer = L.Trainer(
            max_steps=steps,
            max_epochs=-1,
            accelerator="cpu",
            devices=1,
            logger=False,
            enable_progress_bar=any(isinstance(callback, TQDMProgressBar) for callback in extra),
            enable_model_summary=False,
            accumulate_grad_batches=accumulate,
            num_sanity_val_steps=0,
            check_val_every_n_epoch=None,
            val_check_interval=VAL_EVERY,
            log_every_n_steps=1,
            gradient_clip_val=0.5,
            plugins=[written_by or FolderCheckpointIO()],
            callbacks=[
                # Given before those it must follow: Lightning moves it to the end.
                self.checkpoint,
                self.ema,
                Throughput(),
                self.recorder,
                *extra,
                Summary(folder / "summary.json"),
            ],
        )

    def fit(self, ckpt_path: Path | None = None) -> Run:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.manual_seed(0)
            held_out = DataLoader([make_batch(1001), make_batch(1002)], batch_size=None)  # type: ignore[arg-type]
            self.trainer.fit(self.module, Batches(self.batches), held_out, ckpt_path=ckpt_path)
        return self

    def trained(self) -> dict[str, torch.Tensor]:
        return {name: value.detach().clone() for name, value in self.module.architecture.trainable()}


def assert_same(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> None:
    assert left.keys() == right.keys()
    for name, value in left.items():
        assert torch.equal(value, right[name]), name


__all__ = ["VAL_EVERY", "Run", "TextOnly", "assert_same", "make_architecture", "make_batch", "make_module"]
