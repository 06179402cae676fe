"""Compares our training step with a plain loop on diffusers and peft: the same work, alternating, in one process.

python -m benchmarks.training_step [--base small|flux_dev] [--batch 2] [--rounds 40] [--levers] [--half] [--out FILE.json]

`small` is a FLUX of 4 + 8 blocks and width 256, for the CPU; `flux_dev` has FLUX.1-dev's shapes and random weights, for a GPU
of 80 GB. Both sides see the same latents and embeddings, predict two frames, and make one step of AdamW.

- theirs: what diffusers' LoRA training scripts do: `add_adapter`, autocast on a bfloat16 base, `mse_loss`, backward,
  `clip_grad_norm_`, `AdamW`, zero_grad; eager.
- ours: the module's whole training step, with keyed noise, timesteps, dropped conditions and both frames' losses, then the
  same clipping and optimizer step. `--levers` compiles its blocks, takes the fused AdamW, and on a GPU cuDNN's attention.

With `--half` on a CPU, attention is written out for all sides: PyTorch's fused one has a slow backward pass in bfloat16 there.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path

import torch
from peft import LoraConfig
from peft.tuners.lora.layer import Linear as PeftLinear
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from benchmarks.measure import facts, interleaved, ratio, spread, write
from benchmarks.random_models import SHAPES, TARGETS, base_dtype, batch_of, dtype_of, module_of, randomise, transformer
from dsd_lightning.flux import tokens
from dsd_lightning.flux.fused_lora import FusedLoraLinear
from dsd_lightning.flux.norms import LAYER_CLASSES
from dsd_lightning.module import DiffusionSelfDistillation
from dsd_lightning.pairs import PairBatch
from dsd_lightning.planning.counters import MODEL_ATTENTION, Operations


@contextmanager
def autocast(batch: PairBatch, device: torch.device, *, cache: bool = False) -> Iterator[None]:
    """Run under bfloat16 autocast if the base is bfloat16; with or without its cache of converted weights."""
    half = dtype_of(batch) == torch.bfloat16
    with torch.autocast(device.type, torch.bfloat16, enabled=half, cache_enabled=cache):
        yield


def attention(device: torch.device, dtype: torch.dtype) -> AbstractContextManager[None]:
    """Return the context in which all sides compute attention."""
    slow = device.type == "cpu" and dtype == torch.bfloat16
    return sdpa_kernel(SDPBackend.MATH) if slow else nullcontext()


@dataclass(frozen=True)
class Turn:
    """One side of the comparison.

    Attributes:
        step: runs a training step.
        loss: computes its loss alone.
        parameters: of its model.
        state: returns the optimizer's tensors.
    """

    step: Callable[[], None]
    loss: Callable[[], Tensor]
    parameters: Sequence[Tensor]
    state: Callable[[], Sequence[Tensor]] = list

    def kept_bytes(self) -> int:
        """Return the bytes, beside parameters, that autograd keeps from the forward pass to the backward pass."""
        parameters = {parameter.untyped_storage().data_ptr() for parameter in self.parameters}
        kept: dict[int, int] = {}

        def pack(value: Tensor) -> Tensor:
            storage = value.untyped_storage()
            if storage.data_ptr() not in parameters:
                kept[storage.data_ptr()] = storage.nbytes()
            return value

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda value: value):
            loss = self.loss()
        del loss
        return sum(kept.values())


def ours(base: str, batch: PairBatch, args: argparse.Namespace, device: torch.device) -> Turn:
    """Return ours."""
    return bare_step(module_of(base, batch, args, device), batch, device)


def stock_layers(base: str, batch: PairBatch, args: argparse.Namespace, device: torch.device) -> Turn:
    """Return ours with peft's LoRA layers, PyTorch's norms and autocast's cache."""
    module = module_of(base, batch, args, device)
    stock = {FusedLoraLinear: PeftLinear, **{changed: plain for plain, changed in LAYER_CLASSES.items()}}
    for layer in module.architecture.modules():
        layer.__class__ = stock.get(type(layer), type(layer))
    return bare_step(module, batch, device, cache=True)


def bare_step(
    module: DiffusionSelfDistillation, batch: PairBatch, device: torch.device, *, cache: bool = False
) -> Turn:
    """Return one step of a module without a trainer; `cache` keeps converted weights until the forward pass ends."""
    optimizers = module.configure_optimizers()
    optimizer, schedule = optimizers["optimizer"], optimizers["lr_scheduler"]["scheduler"]
    trained = [parameter for _, parameter in module.architecture.trainable()]

    def loss() -> Tensor:
        with autocast(batch, device, cache=cache):
            return module.losses(batch).total

    def step() -> None:
        loss().backward()
        nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()

    def state() -> list[Tensor]:
        kept = (value for values in optimizer.state.values() for value in values.values())
        return [value for value in kept if isinstance(value, Tensor)]

    return Turn(step, loss, list(module.parameters()), state)


def theirs(base: str, batch: PairBatch, args: argparse.Namespace, device: torch.device) -> Turn:
    """Return a plain loop on diffusers and peft."""
    model = transformer(base, device, dtype_of(batch))
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

    def loss() -> Tensor:
        noise, timestep = torch.randn_like(clean), torch.rand(len(clean), device=device)
        mixed = timestep.view(-1, 1, 1, 1).to(clean.dtype)
        noisy = (1 - mixed) * clean + mixed * noise
        with autocast(batch, device, cache=True):
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
        return nn.functional.mse_loss(predicted.float(), tokens.pack(noise - clean).float())

    def step() -> None:
        loss().backward()
        nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad()

    return Turn(step, loss, list(model.parameters()))


def operations(turn: Callable[[], object]) -> int:
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
    parser.add_argument("--half", action="store_true", help="a bfloat16 base under autocast on a CPU, as on a GPU")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--out", type=Path)
    return parser


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure both, and tell the ratio with its interval."""
    parser = parser_of("training_step", __doc__)
    parser.add_argument("--peak-tflops", type=float, default=989.0, help="of the GPU; H100, dense bfloat16: 989")
    args = parser.parse_args(arguments)
    device = torch.device(args.device)
    batch = batch_of(args.base, args.batch, device, base_dtype(args))
    sides = {"ours": ours, "theirs": theirs} | ({"stock layers": stock_layers} if args.half and not args.levers else {})
    turns = {name: side(args.base, batch, args, device) for name, side in sides.items()}
    with attention(device, base_dtype(args)):
        kept = {} if args.levers else {name: turn.kept_bytes() / args.batch for name, turn in turns.items()}
        flops = {name: operations(turn.step) / args.batch for name, turn in turns.items()}
        taken = interleaved({name: turn.step for name, turn in turns.items()}, args.rounds, device)
    seconds = {name: spread(values) for name, values in taken.items()}
    results = {
        "what": "one training step on cached encodings, two frames, LoRA on all linear layers of the blocks",
        "settings": {key: value for key, value in vars(args).items() if key != "out"},
        **facts(device),
        "seconds_a_step": seconds,
        **{f"ours_over_{name}": ratio(taken["ours"], taken[name]) for name in sides if name != "ours"},
        "kept_bytes_a_pair": kept,
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
