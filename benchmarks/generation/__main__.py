"""Compares our sampling with a plain loop on diffusers and peft: the same work, alternating, in one process.

python -m benchmarks.generation [--base small|flux_dev] [--steps 28] [--batch 1] [--levers] [--half] [--out FILE.json]

`small` is a FLUX of 4 + 8 blocks and width 256, for the CPU; `flux_dev` has FLUX.1-dev's shapes and random weights. Both sides
denoise two frames from the same noise under the same embeddings; neither runs a text encoder or the VAE.

- theirs: diffusers' transformer and its scheduler, as its pipelines call them; peft's factors fused.
- ours: the sampler of previews, probes and the pipeline; factors merged, as `generate.py` does. `--levers` compiles its blocks,
  and takes cuDNN's attention on a GPU.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence

import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from peft import LoraConfig
from torch import Tensor, nn

from benchmarks.measure import facts, interleaved, ratio, spread, write
from benchmarks.random_models import TARGETS, base_dtype, batch_of, dtype_of, module_of, randomise, transformer
from benchmarks.training_step import operations, parser_of
from dsd_lightning.flux import lora, tokens
from dsd_lightning.pairs import Condition, PairBatch
from dsd_lightning.rectified_flow import NoShift
from dsd_lightning.sampler import SamplerSettings, sample

GUIDANCE = 3.5
"""Value of the guidance embedding."""

Turn = Callable[[], Tensor]
"""Returns a clean canvas."""


def ours(base: str, batch: PairBatch, noise: Tensor, args: argparse.Namespace, device: torch.device) -> Turn:
    """Return ours."""
    architecture = module_of(base, batch, args, device).architecture.eval()
    lora.merge(architecture.transformer)
    nn.Module.to(architecture, dtype_of(batch))
    assert batch.encoded is not None
    assert batch.text is not None
    guidance = torch.full((len(batch),), GUIDANCE, device=device)
    condition = Condition(batch.text, guidance, batch.encoded.reference)
    settings = SamplerSettings(num_inference_steps=args.steps, guidance_scale=GUIDANCE)

    def generate() -> Tensor:
        return sample(architecture, condition, batch.text, noise, settings, NoShift())

    return generate


def theirs(base: str, batch: PairBatch, noise: Tensor, args: argparse.Namespace, device: torch.device) -> Turn:
    """Return a plain loop on diffusers and peft."""
    dtype = dtype_of(batch)
    model = transformer(base, device, dtype)
    model.add_adapter(LoraConfig(r=args.rank, lora_alpha=args.rank, target_modules=TARGETS))
    randomise(model)
    model.fuse_lora()
    # The reference enters through as many more inputs of the image embedder.
    model.x_embedder = nn.Linear(128, model.inner_dim, device=device, dtype=dtype)
    model.eval()
    assert batch.encoded is not None
    assert batch.text is not None
    canvas, text = tokens.pack(batch.encoded.reference["canvas"]), batch.text
    height, width = noise.shape[-2:]
    ids = tokens.image_ids(height, width, device=device).to(dtype)
    text_ids = tokens.text_ids(text.sequence.shape[1], device=device).to(dtype)
    guidance = torch.full((len(batch),), GUIDANCE, device=device)
    scheduler = FlowMatchEulerDiscreteScheduler(shift=1.0)

    @torch.no_grad()
    def generate() -> Tensor:
        scheduler.set_timesteps(args.steps, device=device)
        latents = tokens.pack(noise)
        for time in scheduler.timesteps:
            predicted = model(
                hidden_states=torch.cat([latents, canvas], dim=-1),
                encoder_hidden_states=text.sequence,
                pooled_projections=text.pooled,
                timestep=time.expand(len(batch)).to(dtype) / 1000,
                img_ids=ids,
                txt_ids=text_ids,
                guidance=guidance,
                return_dict=False,
            )[0]
            latents = scheduler.step(predicted, time, latents, return_dict=False)[0]
        return tokens.unpack(latents, height, width)

    return generate


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure both, and tell the ratio with its interval."""
    parser = parser_of("generation", __doc__)
    parser.add_argument("--steps", type=int, default=28, help="Euler steps")
    args = parser.parse_args(arguments)
    device = torch.device(args.device)
    batch = batch_of(args.base, args.batch, device, base_dtype(args))
    assert batch.encoded is not None
    noise = torch.randn_like(batch.encoded.clean)
    turns = {
        name: side(args.base, batch, noise, args, device) for name, side in {"ours": ours, "theirs": theirs}.items()
    }
    flops = {name: operations(turn) / args.batch for name, turn in turns.items()}
    taken = interleaved(turns, args.rounds, device, warm_up=1)
    results = {
        "what": f"{args.steps} steps from noise to the latents of two frames, LoRA on all linear layers of the blocks merged",
        "settings": {key: value for key, value in vars(args).items() if key != "out"},
        **facts(device),
        "seconds_an_image": {name: spread([value / args.batch for value in values]) for name, values in taken.items()},
        "ours_over_theirs": ratio(taken["ours"], taken["theirs"]),
        "tflop_an_image": {name: count / 1e12 for name, count in flops.items()},
    }
    if device.type == "cuda":
        results["memory_gib"] = torch.cuda.max_memory_allocated(device) / 2**30
    write(args.out, results)


if __name__ == "__main__":
    main()
