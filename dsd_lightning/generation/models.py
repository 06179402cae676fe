"""Defines the flags that name a model and a machine, checks them, and loads the model."""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dsd_lightning.agents.presets import HELP
from dsd_lightning.cli.console import tidy
from dsd_lightning.cli.flags import Flags
from dsd_lightning.flux.step_cache import StepCache
from dsd_lightning.generation.jobs import GenerationError, Job, parse_size

if TYPE_CHECKING:
    from dsd_lightning.pipeline import TwoFramePipeline

HUB_BASE = "black-forest-labs/FLUX.1-dev"  # as in models/restore.py, which takes seconds to import
NO_LORA = "none"
"""Value of --lora_path that stands for no file, not even the one beside --model_path."""

MINIATURE = (
    "No model was named: using the shipped miniature (assets/tiny-flux and assets/tiny-dsd), which was trained on 64 x 64 "
    "pixel images of a small synthetic world. --run or --model_path name another."
)


def command_parser(prog: str, description: str, epilog: str) -> argparse.ArgumentParser:
    """Return a parser whose help keeps the lines of `epilog`."""
    return Flags(
        prog=prog, description=description, epilog=epilog, formatter_class=argparse.RawDescriptionHelpFormatter
    )


def add_model_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags that name a model."""
    model = parser.add_argument_group("the model (the shipped miniature if none is named)")
    model.add_argument(
        "--model_path",
        metavar="NAME",
        help="the authors' weights: hub id (primecai/dsd_model), a download of it, or its folder transformer/",
    )
    model.add_argument(
        "--lora_path",
        nargs="+",
        metavar="NAME[:WEIGHT]",
        help="LoRA files (or folders, or hub ids) and what their updates are multiplied by; for --model_path in place of the "
        f"file beside it ({NO_LORA}: no file), for --run on top of it",
    )
    model.add_argument("--base_path", help=f"folder or hub id of the base, for --model_path; default {HUB_BASE}")
    model.add_argument(
        "--run",
        metavar="NAME",
        help="a training's run folder, one of its checkpoints, or an exported adapter (folder or hub id); any architecture",
    )
    model.add_argument(
        "--text_length", type=int, help="T5 tokens a prompt; default: those of the model's training (the authors': 512)"
    )
    model.add_argument("--no_ema", action="store_true", help="the last weights of --run instead of the EMA weights")
    model.add_argument("--unmerged_lora", action="store_true", help="keep LoRA factors apart: slower, for comparisons")


def add_machine_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags that say where and how a model computes."""
    machine = parser.add_argument_group("the machine")
    machine.add_argument("--device", help="cuda, cuda:1, cpu; default: the GPU if there is one")
    machine.add_argument("--model_offload", action="store_true", help="move one model at a time to the GPU")
    machine.add_argument(
        "--sequential_offload", action="store_true", help="move one layer at a time: least memory, slowest"
    )
    machine.add_argument("--quantize", choices=("fp8", "int8", "nf4"), help="store the transformer in 8 or 4 bits")
    machine.add_argument(
        "--compile", action="store_true", help="compile the transformer's blocks; pays over many images"
    )
    machine.add_argument(
        "--step_cache",
        metavar="KIND[:VALUE]",
        help="skip work that earlier steps tell, at a cost in quality: first_block:THRESHOLD (default 0.05), "
        "taylor_seer:INTERVAL or taylor_seer_lite:INTERVAL (steps, default 5)",
    )


def add_sampling_flags(group: argparse._ActionsContainer) -> None:
    """Add guidances and steps, the authors' flags with their defaults for the authors' weights, and the size of a frame."""
    own = "of a run or export its own, else"
    group.add_argument("--guidance", type=float, help=f"value of the guidance embedding; default: {own} 3.5")
    group.add_argument("--i_guidance", type=float, help=f"true guidance by the image; default: {own} 1.0, none")
    group.add_argument("--t_guidance", type=float, help=f"true guidance by the text; default: {own} 1.0, none")
    group.add_argument("--steps", type=int, help=f"default: {own} 28")
    group.add_argument("--size", help="of a frame: SIDE or HEIGHTxWIDTH, pixels; default: that of the model's training")


def job_of(chosen: argparse.Namespace, image: Path, text: str, output: Path, num_images: int = 1) -> Job:
    """Return a job with the settings of the flags.

    Raises:
        GenerationError: naming the flag.
    """
    return Job(
        image=image,
        text=text,
        output=output,
        seed=chosen.seed,
        num_images=num_images,
        size=parse_size(chosen.size),
        guidance=chosen.guidance,
        i_guidance=chosen.i_guidance,
        t_guidance=chosen.t_guidance,
        steps=chosen.steps,
    )


def add_agent_flag(parser: argparse._ActionsContainer) -> None:
    """Add the flag that names a language model."""
    parser.add_argument(
        "--agents",
        nargs="+",
        metavar=("PRESET", "OVERRIDE"),
        help=HELP,
    )


def check_model(chosen: argparse.Namespace) -> None:
    """Refuse model and machine flags that exclude each other, or name no file or no step cache.

    Raises:
        GenerationError, StepCacheError: naming them.
    """
    if chosen.run is not None and any((chosen.model_path, chosen.base_path)):
        raise GenerationError("--run names a whole model: leave out --model_path and --base_path")
    if chosen.run is None and chosen.model_path is None and (chosen.lora_path or chosen.base_path):
        raise GenerationError(
            "--lora_path and --base_path belong to --model_path: give the authors' weights (primecai/dsd_model)"
        )
    if NO_LORA in (chosen.lora_path or ()) and (len(chosen.lora_path) > 1 or chosen.run is not None):
        raise GenerationError(f"--lora_path {NO_LORA} stands alone, for --model_path: give it, or files")
    if chosen.text_length is not None and (chosen.text_length < 1 or is_miniature(chosen)):
        raise GenerationError(
            f"--text_length {chosen.text_length}: give at least 1 T5 token, and the --run or --model_path that reads them"
        )
    if chosen.model_offload and chosen.sequential_offload:
        raise GenerationError("choose one of --model_offload and --sequential_offload")
    if chosen.step_cache is not None:
        cache = StepCache.parse(chosen.step_cache)
        if chosen.compile:
            cache.require_compilable()
    for name in ("model_path", "run"):
        path = getattr(chosen, name)
        if path is not None and not Path(path).exists() and not _HUB_ID.fullmatch(path):
            raise GenerationError(f"--{name} {path}: there is no such file or folder, and it is no hub id (owner/name)")


_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


def is_miniature(chosen: argparse.Namespace) -> bool:
    """Return whether no model was named, so that the shipped miniature is used."""
    return chosen.run is None and chosen.model_path is None


def load_model(chosen: argparse.Namespace) -> TwoFramePipeline:
    """Return the pipeline that the flags name; outside of a terminal it shows no bar of steps, which a log file would keep."""
    pipeline = _loaded(chosen)
    if not sys.stderr.isatty():
        pipeline.set_progress_bar_config(disable=True)
    return pipeline


def _loaded(chosen: argparse.Namespace) -> TwoFramePipeline:
    from dsd_lightning.compute.device import find_device
    from dsd_lightning.pipeline import TwoFramePipeline

    tidy()
    find_device(chosen.device, "--device")  # before the model is loaded
    offload = "model" if chosen.model_offload else "sequential" if chosen.sequential_offload else None
    options: dict[str, Any] = {
        "quantize": chosen.quantize,
        "offload": offload,
        "device": chosen.device,
        "compile": chosen.compile,
        "step_cache": chosen.step_cache,
        "merge_lora": not chosen.unmerged_lora,
    }
    if not is_miniature(chosen):
        options["text_length"] = chosen.text_length
    if chosen.run is not None:
        return TwoFramePipeline.from_run(chosen.run, ema=not chosen.no_ema, lora=chosen.lora_path, **options)
    if chosen.model_path is not None:
        if chosen.lora_path is not None:
            options["lora"] = None if chosen.lora_path == [NO_LORA] else chosen.lora_path
        return TwoFramePipeline.load(chosen.base_path or HUB_BASE, chosen.model_path, **options)
    return TwoFramePipeline.tiny(**options)
