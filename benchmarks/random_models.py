"""FLUX models of random weights and batches of random encodings, to measure speed and memory with."""

from __future__ import annotations

import argparse
from functools import partial
from typing import Any

import torch
from diffusers import FluxTransformer2DModel
from torch import Tensor, nn

from dsd_lightning.architectures.parallel import Parallel
from dsd_lightning.compute.gradient_checkpointing import checkpoint_blocks
from dsd_lightning.flux.codec import Codec
from dsd_lightning.flux.lora import Lora
from dsd_lightning.flux.text import TextEncoder
from dsd_lightning.module import DiffusionSelfDistillation, Dropout
from dsd_lightning.pairs import Encoded, PairBatch, Task, TextEmbeddings
from dsd_lightning.rectified_flow import NoShift, Uniform
from dsd_lightning.sampler import SamplerSettings

SHAPES: dict[str, dict[str, Any]] = {
    "small": {
        "num_layers": 4,
        "num_single_layers": 8,
        "attention_head_dim": 32,
        "num_attention_heads": 8,
        "joint_attention_dim": 256,
        "axes_dims_rope": (8, 12, 12),
    },
    "flux_dev": {
        "num_layers": 19,
        "num_single_layers": 38,
        "attention_head_dim": 128,
        "num_attention_heads": 24,
        "joint_attention_dim": 4096,
        "axes_dims_rope": (16, 56, 56),
    },
}
LATENTS = {"small": (16, 24), "flux_dev": (64, 512)}
"""Side of a frame's latents; T5 tokens."""

TARGETS = (
    r"(single_)?transformer_blocks\.\d+\.(attn\.(to_[qkv]|add_[qkv]_proj|to_out\.0|to_add_out)|"
    r"ff\.net\.(0\.proj|2)|ff_context\.net\.(0\.proj|2)|proj_mlp|proj_out)"
)


class _NoCodec(Codec):
    """Stands where encodings are given."""

    def __init__(self) -> None:
        nn.Module.__init__(self)


class _GivenText(TextEncoder):
    def __init__(self, null: TextEmbeddings) -> None:
        nn.Module.__init__(self)
        self._null = null

    def null(self, sequence_length: int | None = None) -> TextEmbeddings:
        return self._null


def _meta_transformer(base: str, dtype: torch.dtype) -> FluxTransformer2DModel:
    with torch.device("meta"):
        model = FluxTransformer2DModel(in_channels=64, pooled_projection_dim=768, guidance_embeds=True, **SHAPES[base])
    return nn.Module.to(model, dtype)


def meta_architecture(base: str, rank: int, dtype: torch.dtype) -> Parallel:
    """Return the architecture that `module_of` trains, without memory."""
    model = _meta_transformer(base, dtype)
    with torch.device("meta"):
        return Parallel(model, Lora(rank=rank, targets=TARGETS))


def transformer(base: str, device: torch.device, dtype: torch.dtype) -> FluxTransformer2DModel:
    """Return a frozen transformer of random weights, drawn on the device."""
    model = _meta_transformer(base, dtype).to_empty(device=device).requires_grad_(False)
    model.pos_embed = type(model.pos_embed)(theta=10000, axes_dim=SHAPES[base]["axes_dims_rope"])
    generator = torch.Generator(device).manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            # Never zeros, which run faster.
            parameter.normal_(0.0, 0.02, generator=generator)
            if "norm" in name and name.endswith("weight") and parameter.ndim == 1:
                parameter.fill_(1.0)
    return model


def randomise(module: nn.Module) -> None:
    """Give the second factors, which start at zero, random values."""
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if ".lora_B" in name:
                parameter.normal_(0.0, 0.01)


def batch_of(base: str, size: int, device: torch.device, dtype: torch.dtype) -> PairBatch:
    """Return random encodings and embeddings."""
    torch.manual_seed(0)
    side, words = LATENTS[base]
    canvas = (size, 16, side, 2 * side)
    width = SHAPES[base]["joint_attention_dim"]

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, device=device, dtype=dtype)

    return PairBatch(
        keys=[str(number) for number in range(size)],
        epochs=[0] * size,
        prompts=[""] * size,
        encoded=Encoded(normal(*canvas), {"canvas": normal(*canvas)}),
        text=TextEmbeddings(normal(size, words, width), normal(size, 768)),
    )


def module_of(base: str, batch: PairBatch, args: argparse.Namespace, device: torch.device) -> DiffusionSelfDistillation:
    """Return our module on random weights."""
    model = transformer(base, device, dtype_of(batch))
    if args.levers and device.type == "cuda":
        model.set_attention_backend("_native_cudnn")
    architecture = Parallel(model, Lora(rank=args.rank, targets=TARGETS)).to(device)
    randomise(architecture)
    checkpoint_blocks(architecture, args.gradient_checkpointing)
    if args.levers:
        for unit in architecture.shard_units():
            unit.compile(dynamic=False)
    assert batch.text is not None
    null = TextEmbeddings(torch.zeros_like(batch.text.sequence[:1]), torch.zeros_like(batch.text.pooled[:1]))
    return DiffusionSelfDistillation(
        architecture=architecture,
        codec=_NoCodec(),
        text_encoder=_GivenText(null),
        task=Task("identity", False, {"reference": 0.25, "target": 1.0}),
        density=Uniform(),
        shift=NoShift(),
        dropout=Dropout(0.05, 0.05, 0.05),
        optimizer=partial(torch.optim.AdamW, lr=1e-4, fused=args.levers or None),
        schedule=partial(torch.optim.lr_scheduler.LambdaLR, lr_lambda=lambda step: 1.0),
        guidance_scale=1.0,
        sampler=SamplerSettings(num_inference_steps=1),
        seed=0,
    )


def dtype_of(batch: PairBatch) -> torch.dtype:
    """Return the dtype of a batch's encodings, which is the base's."""
    assert batch.encoded is not None
    return batch.encoded.clean.dtype


def base_dtype(args: argparse.Namespace) -> torch.dtype:
    """Return the dtype of the base: bfloat16 on a GPU and with `--half`."""
    return torch.bfloat16 if args.half or torch.device(args.device).type == "cuda" else torch.float32
