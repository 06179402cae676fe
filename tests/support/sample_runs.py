"""A small model of real parts, a handful of pairs, and a run of few steps, for tests of callbacks that generate images."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import astuple
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
from diffusers import AutoencoderKL, FluxTransformer2DModel
from lightning.pytorch.loggers import CSVLogger
from torch.utils.data import DataLoader
from transformers import AutoTokenizer, CLIPTextModel, CLIPTokenizer, T5EncoderModel

from dsd_lightning.architectures.parallel import Parallel
from dsd_lightning.architectures.text_only import TextOnly
from dsd_lightning.flux.codec import Codec
from dsd_lightning.flux.lora import Lora
from dsd_lightning.flux.text import TextEncoder
from dsd_lightning.miniature.captions import target_caption
from dsd_lightning.miniature.renderer import render
from dsd_lightning.miniature.world import Scene, draw_context, draw_identity
from dsd_lightning.module import DiffusionSelfDistillation, Dropout
from dsd_lightning.pairs import PairBatch, Task
from dsd_lightning.randomness import numpy_generator
from dsd_lightning.rectified_flow import NoShift, Uniform
from dsd_lightning.sampler import SamplerSettings

TEXTS = Path(__file__).parents[2] / "assets" / "tiny-flux"


def text_encoder() -> TextEncoder:
    return TextEncoder(
        CLIPTextModel.from_pretrained(TEXTS / "text_encoder"),
        CLIPTokenizer.from_pretrained(TEXTS / "tokenizer"),
        T5EncoderModel.from_pretrained(TEXTS / "text_encoder_2"),
        AutoTokenizer.from_pretrained(TEXTS / "tokenizer_2"),
        sequence_length=8,
    )


def small_module(kind: str = "parallel") -> DiffusionSelfDistillation:
    """Return a random model; everything in it is real, and small."""
    torch.manual_seed(3)
    texts = text_encoder()
    transformer = FluxTransformer2DModel(
        in_channels=64, num_layers=1, num_single_layers=1, attention_head_dim=16, num_attention_heads=2,
        joint_attention_dim=texts.t5.config.d_model, pooled_projection_dim=texts.clip.config.hidden_size,
        guidance_embeds=True, axes_dims_rope=(4, 6, 6),
    )  # fmt: skip
    vae = AutoencoderKL(
        block_out_channels=(8, 8, 8, 8), down_block_types=("DownEncoderBlock2D",) * 4, norm_num_groups=4,
        up_block_types=("UpDecoderBlock2D",) * 4, latent_channels=16, shift_factor=0.1, scaling_factor=0.4,
        use_quant_conv=False, use_post_quant_conv=False,
    )  # fmt: skip
    lora = Lora(rank=2, targets=r".*transformer_blocks\..*\.to_[qkv]")
    architecture = Parallel(transformer, lora) if kind == "parallel" else TextOnly(transformer, lora)
    return DiffusionSelfDistillation(
        architecture=architecture,
        codec=Codec(vae),
        text_encoder=texts,
        task=Task("identity", aligned=False, frame_weights={"reference": 0.5, "target": 1.0}),
        density=Uniform(),
        shift=NoShift(),
        dropout=Dropout(text=0.2),
        optimizer=partial(torch.optim.AdamW, lr=1e-2),
        schedule=partial(torch.optim.lr_scheduler.ConstantLR, factor=1.0),
        guidance_scale=3.5,
        sampler=SamplerSettings(num_inference_steps=2),
        seed=11,
    )


class Miniature(L.LightningDataModule):
    """A handful of pairs; `resolution` and `probe_batches` are what callbacks ask for."""

    resolution = (64, 64)

    def __init__(self, with_facts: bool = True) -> None:
        super().__init__()
        self.with_facts = with_facts
        self.served = 0

    def batch(self, count: int, first: int = 0) -> PairBatch:
        rng = numpy_generator("samples test", first)
        references, targets, facts, prompts = [], [], [], []
        for _ in range(count):
            identity, before, after = draw_identity(rng, held_out=True), draw_context(rng), draw_context(rng)
            for images, context in ((references, before), (targets, after)):
                image = render(Scene(identity, context)).image.transpose(2, 0, 1)
                images.append(torch.from_numpy(np.ascontiguousarray(image)) * 2 - 1)
            values = {"identity": identity, "reference": before, "target": after}
            facts.append({name: [int(i) for i in astuple(value)] for name, value in values.items()})
            prompts.append(target_caption(after, rng))
        return PairBatch(
            keys=[f"{first}-{i}" for i in range(count)],
            epochs=[0] * count,
            prompts=prompts,
            reference=torch.stack(references),
            target=torch.stack(targets),
            facts=facts if self.with_facts else [{}] * count,
        )

    def train_dataloader(self) -> DataLoader[Any]:
        return DataLoader([self.batch(2, first=index) for index in range(4)], batch_size=None, shuffle=True)

    def probe_batches(self, count: int, batch_size: int) -> Iterator[PairBatch]:
        self.served += 1
        # A loader of its own that draws from the global generator, as any DataLoader does.
        torch.rand(1)
        for start in range(0, count, batch_size):
            yield self.batch(min(batch_size, count - start), first=1000 + start)


def run(
    folder: Path,
    module: DiffusionSelfDistillation,
    data: Miniature,
    callbacks: list[Any],
    steps: int = 4,
    **options: Any,
) -> L.Trainer:
    torch.manual_seed(5)
    options = {"logger": CSVLogger(folder, name="", version="")} | options
    resume = options.pop("ckpt_path", None)
    trainer = L.Trainer(
        default_root_dir=folder, max_steps=steps, accelerator="cpu", devices=1, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, callbacks=callbacks, log_every_n_steps=1, **options,
    )  # fmt: skip
    trainer.fit(module, datamodule=data, ckpt_path=resume)
    return trainer
