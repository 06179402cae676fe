"""Loads a pipeline's parts, LoRA merged for inference: official files, a run, the shipped miniature, a saved pipeline."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from diffusers import FlowMatchEulerDiscreteScheduler, FluxTransformer2DModel
from omegaconf import OmegaConf
from safetensors.torch import load_file

from dsd_lightning.architectures.base import Architecture
from dsd_lightning.architectures.parallel import Parallel
from dsd_lightning.checkpoints.lora_files import add_updates
from dsd_lightning.files.checkout import CHECKOUT
from dsd_lightning.flux.base import DTYPES, FluxBase
from dsd_lightning.models.generation_settings import GenerationSettings, read_settings, settings_of
from dsd_lightning.models.restore import (
    FOUND,
    Loras,
    Restored,
    config_of_adapter,
    finish_for_inference,
    lora_files,
    network_arguments,
    restore,
    restore_adapter,
    restore_official,
)
from dsd_lightning.models.trusted import build_trusted
from dsd_lightning.pipeline.schedule import scheduler_of, scheduler_of_base
from dsd_lightning.runs.folder import CONFIG
from dsd_lightning.sampler import Shift

TINY_ADAPTER = CHECKOUT / "assets" / "tiny-dsd"
"""The shipped miniature's adapter."""

_ARCHITECTURES = "dsd_lightning.architectures."


class LoadingError(ValueError):
    """A folder or value that no pipeline can be made of; the message says why and what to give instead."""


Parts = dict[str, Any]
"""Arguments of `TwoFramePipeline`."""


def official_parts(
    base: str | Path,
    transformer: str | Path | None,
    lora: Loras,
    dtype: torch.dtype,
    merge_lora: bool,
    text_length: int | None,
    default_size: int | None,
) -> Parts:
    """Return the parts of the authors' model; see `restore_official`."""
    architecture, flux, settings = restore_official(base, transformer, lora, dtype, text_length)
    loras = [lora] if isinstance(lora, str | Path) else [*(lora or ())]
    named = [each for each in (base, transformer, *loras) if each is not None and each != FOUND]
    name = " + ".join(_label(each) for each in named)
    recipe = {"_target_": f"{Parallel.__module__}.{Parallel.__qualname__}"}
    _finish(architecture, recipe, dtype, merge_lora)
    if default_size is not None:
        settings = replace(settings, height=default_size, width=default_size)
    return _parts(flux, architecture, scheduler_of_base(flux), settings, name)


def run_parts(
    run: str | Path,
    ema: bool,
    dtype: torch.dtype | None,
    merge_lora: bool,
    lora: Loras = None,
    text_length: int | None = None,
) -> Parts:
    """Return the parts of a run's last complete checkpoint, of one of its checkpoint folders, or of an exported adapter.

    Args:
        run: folder, or hub id of an exported adapter. ema: the EMA weights rather than the last ones.
        dtype: of all weights; that of the run's base if None.
        merge_lora: False keeps the run's own factors apart.
        lora: LoRA files whose updates are added to the weights.
        text_length: T5 tokens a prompt; those of its training if None.

    Raises:
        NoRunError: it is none of these.
        ModelSourceError: a hub id that cannot be downloaded, or a LoRA file that is not there.
        AdapterMismatchError, BaseModelError, OfficialWeightsError: see there.
    """
    extra = lora_files(lora)
    restored = restore(run, ema, dtype=dtype)
    for each in extra:
        add_updates(restored.architecture.transformer, each)
    settings = settings_of(restored.config)
    if text_length is not None:
        settings = replace(settings, text_length=text_length)
    is_export = restored.run == restored.checkpoint
    place = (
        restored.run.resolve().parts[-1:]
        if is_export
        else (*restored.run.resolve().parts[-2:], restored.checkpoint.name)
    )
    name = " + ".join(["/".join(place), *(each.path.name for each in extra)])
    return _parts_of(restored, merge_lora, settings, name)


def tiny_parts(dtype: torch.dtype | None, merge_lora: bool) -> Parts:
    """Return the parts of the shipped miniature."""
    config = config_of_adapter(TINY_ADAPTER, CHECKOUT / "conf" / "base" / "tiny.yaml")
    settings = read_settings(TINY_ADAPTER) or settings_of(config)
    return _parts_of(restore_adapter(config, TINY_ADAPTER, dtype=dtype), merge_lora, settings, TINY_ADAPTER.name)


def _parts_of(restored: Restored, merge_lora: bool, settings: GenerationSettings, name: str) -> Parts:
    """Return the parts of a restored model; without `shift` in its configuration, the base's scheduler is used.

    `name` is what images' metadata call the weights.
    """
    base, config = restored.base, restored.config
    shift: Any = build_trusted(config.shift, restored.run / CONFIG) if "shift" in config else FluxBase.shift
    if not isinstance(shift, Shift):
        shift = shift(base)
    recipe: Any = OmegaConf.to_container(config.arch, resolve=True)
    _finish(restored.architecture, recipe, base.torch_dtype, merge_lora)
    return _parts(base, restored.architecture, scheduler_of(shift), settings, f"{_label(base.path)} + {name}")


# --- An architecture as a folder of its own, as `TwoFramePipeline.save_pretrained` leaves it.


def load_architecture(folder: Path, dtype: torch.dtype | None = None) -> Architecture:
    """Return the architecture in a saved pipeline's `transformer/`: config.json with its recipe, and all its weights.

    Raises:
        LoadingError: the folder is none of ours, or weights are missing or left over.
        UntrustedTargetError: its recipe names something to be called that no architecture needs.
    """
    file = folder / "config.json"
    config = json.loads(file.read_text()) if file.is_file() else {}
    recipe, network = config.get("recipe"), config.get("network")
    if not recipe or not network or not str(recipe.get("_target_", "")).startswith(_ARCHITECTURES):
        raise LoadingError(
            f"{folder} was not saved by TwoFramePipeline.save_pretrained; official weights are loaded by "
            "TwoFramePipeline.load(base=..., transformer=...), runs by TwoFramePipeline.from_run"
        )
    files = sorted(folder.glob("diffusion_pytorch_model*.safetensors"))
    weights = {name: value for each in files for name, value in load_file(each).items()}
    with torch.device("meta"):
        architecture: Architecture = build_trusted(recipe, file)(
            transformer=FluxTransformer2DModel(**network_arguments(network, file))
        )
    missing, unexpected = architecture.load_state_dict(weights, strict=False, assign=True)
    missing += [name for name, value in architecture.named_buffers() if value.is_meta]
    if missing or unexpected:
        raise LoadingError(
            f"{folder}: {len(missing)} weights are missing (first {missing[:3]}), {len(unexpected)} left over "
            f"(first {unexpected[:3]})"
        )
    _finish(architecture, recipe, dtype, merge_lora=False)
    return architecture


def _finish(architecture: Architecture, recipe: Mapping[str, Any], dtype: torch.dtype | None, merge_lora: bool) -> None:
    """Finish for inference, and register how the architecture is built again, for `save_pretrained`."""
    finish_for_inference(architecture, dtype, merge_lora)
    lora = architecture.lora
    settings = None
    if lora is not None:
        settings = {
            "_target_": "dsd_lightning.flux.lora.Lora",
            "rank": lora.rank,
            "alpha": lora.alpha,
            "targets": lora.targets,
        }
    network = {key: value for key, value in architecture.transformer.config.items() if not key.startswith("_")}
    recipe = {**recipe, "_partial_": True, "lora": settings}
    # Not under `transformer`: diffusers would answer for the module of that name with its configuration.
    architecture.register_to_config(recipe=recipe, network=network)


def _parts(
    flux: FluxBase,
    architecture: Architecture,
    scheduler: FlowMatchEulerDiscreteScheduler,
    settings: GenerationSettings,
    name: str,
) -> Parts:
    text = flux.text_encoder()
    return {
        "scheduler": scheduler,
        "vae": flux.codec().vae,
        "text_encoder": text.clip,
        "tokenizer": text.clip_tokenizer,
        "text_encoder_2": text.t5,
        "tokenizer_2": text.t5_tokenizer,
        "transformer": architecture,
        "text_length": settings.text_length,
        "default_size": max(settings.height, settings.width),
        "num_inference_steps": settings.num_inference_steps,
        "guidance_scale": settings.guidance_scale,
        "image_guidance": settings.image_guidance,
        "text_guidance": settings.text_guidance,
        "model_name": name,
    }


def _label(path: str | Path) -> str:
    """Return a name that identifies a model but not its place on this machine; hub ids stay as they are."""
    return Path(path).name if Path(path).exists() else str(path)


def dtype_of(dtype: torch.dtype | str | None) -> torch.dtype | None:
    """Return a dtype that is given as such or by its name ("bfloat16"); None stays None.

    Raises:
        LoadingError: a name that is unknown.
    """
    if not isinstance(dtype, str):
        return dtype
    if dtype not in DTYPES:
        raise LoadingError(f"dtype={dtype!r} is unknown; choose one of {', '.join(DTYPES)}")
    return DTYPES[dtype]
