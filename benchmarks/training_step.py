"""Compares our training step with a plain loop on diffusers and peft: the same work, alternating, in one process.

python -m benchmarks.training_step [--base small|flux_dev] [--batch 2] [--rounds 40] [--levers] [--out FILE.json]

`small` is a FLUX of 4 + 8 blocks and width 256, for the CPU; `flux_dev` has FLUX.1-dev's shapes and random weights, for a GPU
of 80 GB. Both sides see the same latents and embeddings, predict two frames, and make one step of AdamW.

- theirs: what diffusers' LoRA training scripts do: `add_adapter`, autocast on a bfloat16 base, `mse_loss`, backward,
  `clip_grad_norm_`, `AdamW`, zero_grad; eager.
- ours: the module's whole training step, with keyed noise, timesteps, dropped conditions and both frames' losses, then the
  same clipping and optimizer step. `--levers` compiles its blocks, takes the fused AdamW, and on a GPU cuDNN's attention.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from diffusers import FluxTransformer2DModel
from peft import LoraConfig
from torch import Tensor, nn

from benchmarks.measure import facts, interleaved, ratio, spread, write
from dsd_lightning.architectures.parallel import Parallel
from dsd_lightning.compute.gradient_checkpointing import checkpoint_blocks
from dsd_lightning.flux import tokens
from dsd_lightning.flux.codec import Codec
from dsd_lightning.flux.lora import Lora
from dsd_lightning.flux.text import TextEncoder
from dsd_lightning.module import DiffusionSelfDistillation, Dropout
from dsd_lightning.pairs import Encoded, PairBatch, Task, TextEmbeddings
from dsd_lightning.planning.counters import MODEL_ATTENTION, Operations
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


def transformer(base: str, device: torch.device) -> FluxTransformer2DModel:
    """Return a frozen transformer of random weights, drawn on the device; bfloat16 on GPUs."""
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    with torch.device("meta"):
        model = FluxTransformer2DModel(in_channels=64, pooled_projection_dim=768, guidance_embeds=True, **SHAPES[base])
    model = nn.Module.to(model, dtype).to_empty(device=device).requires_grad_(False)
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


def batch_of(base: str, size: int, device: torch.device) -> PairBatch:
    """Return random encodings and embeddings, bfloat16 on a GPU."""
    torch.manual_seed(0)
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
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
    model = transformer(base, device)
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


def ours(base: str, batch: PairBatch, args: argparse.Namespace, device: torch.device) -> Callable[[], None]:
    """Return one step of ours."""
    return bare_step(module_of(base, batch, args, device), batch, device)


def bare_step(module: DiffusionSelfDistillation, batch: PairBatch, device: torch.device) -> Callable[[], None]:
    """Return one step of a module without a trainer."""
    made = module.configure_optimizers()
    optimizer, schedule = made["optimizer"], made["lr_scheduler"]["scheduler"]
    trained = [parameter for _, parameter in module.architecture.trainable()]

    def step() -> None:
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            loss = module.losses(batch).total
        loss.backward()
        nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()

    return step


def theirs(base: str, batch: PairBatch, args: argparse.Namespace, device: torch.device) -> Callable[[], None]:
    """Return one step of a plain loop on diffusers and peft."""
    model = transformer(base, device)
    model.add_adapter(LoraConfig(r=args.rank, lora_alpha=args.rank, target_modules=TARGETS))
    # The reference enters through as many more inputs of the image embedder.
    wide = nn.Linear(128, model.inner_dim, device=device)
    model.x_embedder = wide
    for name, parameter in model.named_parameters():
        if ".lora_" in name or name.startswith("x_embedder"):
            parameter.requires_grad_(True)
            parameter.data = parameter.data.float()
    randomise(model)
    if args.gradient_checkpointing == "all":
        model.enable_gradient_checkpointing()
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-4)
    assert batch.encoded is not None
    assert batch.text is not None
    clean, canvas, text = batch.encoded.clean, batch.encoded.reference["canvas"], batch.text
    height, width = clean.shape[-2:]
    ids = tokens.image_ids(height, width, device=device)
    text_ids = tokens.text_ids(text.sequence.shape[1], device=device)
    guidance = torch.ones(len(clean), device=device)

    def step() -> None:
        noise, timestep = torch.randn_like(clean), torch.rand(len(clean), device=device)
        mixed = timestep.view(-1, 1, 1, 1).to(clean.dtype)
        noisy = (1 - mixed) * clean + mixed * noise
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            predicted = model(
                hidden_states=torch.cat([tokens.pack(noisy), tokens.pack(canvas)], dim=-1),
                encoder_hidden_states=text.sequence,
                pooled_projections=text.pooled,
                timestep=timestep,
                img_ids=ids,
                txt_ids=text_ids,
                guidance=guidance,
                return_dict=False,
            )[0]
        loss = nn.functional.mse_loss(predicted.float(), tokens.pack(noise - clean).float())
        loss.backward()
        nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad()

    return step


def operations(turn: Callable[[], None]) -> int:
    """Return the floating-point operations of a turn, compiled blocks being run as they were written."""
    with torch.compiler.set_stance("force_eager"), Operations(MODEL_ATTENTION) as counted:
        turn()
    return counted.total


def parser_of(name: str, description: str | None) -> argparse.ArgumentParser:
    """Return the parser of a benchmark of steps, with the settings that all of them have."""
    parser = argparse.ArgumentParser(prog=f"python -m benchmarks.{name}", description=description)
    parser.add_argument("--base", choices=list(SHAPES), default="small")
    parser.add_argument("--batch", type=int, default=2, help="pairs")
    parser.add_argument("--rank", type=int, default=16, help="of the factors; the paper's run: 512")
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--gradient-checkpointing", default="none", choices=["none", "all"])
    parser.add_argument(
        "--levers", action="store_true", help="compiled blocks, fused AdamW, cuDNN's attention on a GPU"
    )
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--out", type=Path)
    return parser


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure both, and tell the ratio with its interval."""
    parser = parser_of("training_step", __doc__)
    parser.add_argument("--peak-tflops", type=float, default=989.0, help="of the GPU; H100, dense bfloat16: 989")
    args = parser.parse_args(arguments)
    device = torch.device(args.device)
    batch = batch_of(args.base, args.batch, device)
    turns = {"ours": ours(args.base, batch, args, device), "theirs": theirs(args.base, batch, args, device)}
    flops = {name: operations(turn) / args.batch for name, turn in turns.items()}
    taken = interleaved(turns, args.rounds, device)
    seconds = {name: spread(values) for name, values in taken.items()}
    results = {
        "what": "one training step on cached encodings, two frames, LoRA on all linear layers of the blocks",
        "settings": {key: value for key, value in vars(args).items() if key != "out"},
        **facts(device),
        "seconds_a_step": seconds,
        "ours_over_theirs": ratio(taken["ours"], taken["theirs"]),
        "tflop_a_pair": {name: count / 1e12 for name, count in flops.items()},
        "tflop_counts": "matrix products of forward and backward; a multiply-add is two; attention's "
        "backward is twice its forward where the kernel is known to torch's counter",
    }
    if device.type == "cuda":
        reached = flops["theirs"] * args.batch / seconds["ours"]["median"] / (args.peak_tflops * 1e12)
        results |= {"mfu": reached, "memory_gib": torch.cuda.max_memory_allocated(device) / 2**30}
    write(args.out, results)


if __name__ == "__main__":
    main()
