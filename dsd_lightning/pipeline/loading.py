"""From where do a pipeline's parts come? Official files, a run's folder, a saved pipeline; LoRA merged for inference."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers import FlowMatchEulerDiscreteScheduler, FluxTransformer2DModel
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from safetensors.torch import load_file
from torch import nn

from dsd_lightning.architectures.base import Architecture
from dsd_lightning.architectures.parallel import Parallel
from dsd_lightning.checkpoints.adapter import load_adapter, read_header
from dsd_lightning.checkpoints.folder_io import find_last
from dsd_lightning.checkpoints.official import OfficialWeightsError, load_official
from dsd_lightning.flux.base import DTYPES, FluxBase
from dsd_lightning.flux.lora import merge
from dsd_lightning.pipeline.schedule import scheduler_of, scheduler_of_base
from dsd_lightning.sampler import Shift

log = logging.getLogger(__name__)

CHECKOUT = Path(__file__).parents[2]
TINY_BASE, TINY_ADAPTER = CHECKOUT / "assets" / "tiny-flux", CHECKOUT / "assets" / "tiny-dsd"
"""The shipped miniature: a base, and an adapter trained on it."""

_ARCHITECTURES = "dsd_lightning.architectures."


class LoadingError(ValueError):
    """What was named cannot be made into a pipeline; the message says why and what to give instead."""


Parts = dict[str, Any]
"""Arguments of `TwoFramePipeline`."""


def official_parts(
    base: str | Path,
    transformer: str | Path | None,
    lora: str | Path | None,
    dtype: torch.dtype,
    merge_lora: bool,
    text_length: int,
    default_size: int,
) -> Parts:
    """Return the parts of the authors' model: a FLUX base, the official transformer folder, and the LoRA file.

    The base's own transformer is only read where `transformer` is None.

    Raises:
        OfficialWeightsError: files that are not in the official layout or do not fit; weights missing or left over.
        BaseModelError: the base cannot be loaded.
    """
    folder: Path | None = None
    if transformer is None:
        flux = FluxBase(str(base), dtype=_name_of(dtype), text_length=text_length)
        network = flux.transformer()
    else:
        folder = Path(transformer)
        folder = folder / "transformer" if (folder / "transformer" / "config.json").is_file() else folder
        config = _official_config(folder)
        flux = FluxBase(
            str(base),
            dtype=_name_of(dtype),
            text_length=text_length,
            initialise="meta",
            transformer_config=config,
            guidance_scale=1.0 if config.get("guidance_embeds") else None,
        )
        network = flux.transformer().to_empty(device="cpu")  # filled below, or refused
    architecture = Parallel(network)
    if folder is not None:
        load_official(architecture, folder)
    elif lora is None:
        log.warning("neither official weights nor a LoRA: plain FLUX does not look at the reference")
    if lora is not None:
        load_official(architecture, lora=lora)
    name = " + ".join(_label(each) for each in (base, transformer, lora) if each is not None)
    recipe = {"_target_": f"{_ARCHITECTURES}parallel.Parallel"}
    _finish(architecture, recipe, dtype, merge_lora)
    return _parts(flux, architecture, scheduler_of_base(flux), text_length, default_size, name)


def run_parts(run: str | Path, ema: bool, dtype: torch.dtype | None, merge_lora: bool) -> Parts:
    """Return the parts of a run's last whole checkpoint, or of one checkpoint folder of it.

    Raises:
        LoadingError: it is no run folder, or holds no whole checkpoint.
        AdapterMismatchError, BaseModelError: see there.
    """
    folder = Path(run)
    chosen = folder if (folder / "adapter.json").is_file() else None
    folder = folder.parents[1] if chosen is not None and len(folder.parents) > 1 else folder
    file = folder / ".hydra" / "config.yaml"
    if not file.is_file():
        raise LoadingError(f"{run} is no run folder: there is no {file}; give outputs/<date>/<time> of a training")
    checkpoint = chosen or find_last(folder / "checkpoints")
    if checkpoint is None:
        raise LoadingError(f"{run} holds no whole checkpoint (looked in {folder / 'checkpoints'})")
    config = OmegaConf.load(file)
    assert isinstance(config, DictConfig), "a mapping was written"
    resolution = OmegaConf.select(config, "data.datamodule.source.resolution")
    size = 512 if resolution is None else int(max(resolution))
    run_name = "/".join([*folder.resolve().parts[-2:], checkpoint.name])
    return adapter_parts(config, checkpoint, ema, dtype, merge_lora, size, run_name)


def tiny_parts(dtype: torch.dtype | None, merge_lora: bool) -> Parts:
    """Return the parts of the shipped miniature."""
    lora = read_header(TINY_ADAPTER)["lora"]
    factors = {"rank": lora["rank"], "alpha": int(lora["alpha"]), "targets": lora["targets"]}
    config: Any = OmegaConf.create(
        {
            "base": OmegaConf.load(CHECKOUT / "conf" / "base" / "tiny.yaml"),
            "arch": {
                "_target_": f"{_ARCHITECTURES}parallel.Parallel",
                "_partial_": True,
                "lora": {"_target_": "dsd_lightning.flux.lora.Lora", **factors},
            },
        }
    )
    return adapter_parts(config, TINY_ADAPTER, True, dtype, merge_lora, 64, TINY_ADAPTER.name)


def adapter_parts(
    config: DictConfig,
    checkpoint: Path,
    ema: bool,
    dtype: torch.dtype | None,
    merge_lora: bool,
    default_size: int,
    name: str,
) -> Parts:
    """Return the parts that a training configuration (`base`, `arch`, `shift`) and trained weights make.

    Without `shift`, the base's scheduler has the say. `name` is what images' metadata call the weights.
    """
    path = str(config.base.model.path)
    if not Path(path).exists() and (CHECKOUT / path).exists():
        path = str(CHECKOUT / path)
    overrides = {"path": path} | ({} if dtype is None else {"dtype": _name_of(dtype)})
    flux: FluxBase = instantiate(config.base.model, **overrides)
    shift: Any = instantiate(config.shift) if "shift" in config else FluxBase.resolution_shift
    if not isinstance(shift, Shift):
        shift = shift(flux)
    architecture: Architecture = instantiate(config.arch)(transformer=flux.transformer())
    load_adapter(checkpoint, architecture, ema)
    recipe: Any = OmegaConf.to_container(config.arch, resolve=True)
    _finish(architecture, recipe, flux.torch_dtype, merge_lora)
    return _parts(flux, architecture, scheduler_of(shift), flux.text_length, default_size, f"{_label(path)} + {name}")


# --- An architecture as a folder of its own, as `TwoFramePipeline.save_pretrained` leaves it.


def load_architecture(folder: Path, dtype: torch.dtype | None = None) -> Architecture:
    """Return the architecture in a saved pipeline's `transformer/`: config.json with its recipe, and all its weights.

    Raises:
        LoadingError: the folder is none of ours, or weights are missing or left over.
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
        architecture: Architecture = instantiate(recipe)(transformer=FluxTransformer2DModel(**_arguments(network)))
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
    """Merge, freeze, and note how the architecture is built anew, for `save_pretrained`."""
    if merge_lora:
        merge(architecture.transformer)
        architecture.lora = None
    architecture.requires_grad_(False).eval()
    if dtype is not None:
        nn.Module.to(architecture, dtype)  # diffusers' own `to` warns of modules that FLUX does not have
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
    text_length: int,
    default_size: int,
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
        "text_length": text_length,
        "default_size": default_size,
        "model_name": name,
    }


def _label(path: str | Path) -> str:
    """Return a name that tells a model but not where on this machine it lies; hub ids stay as they are."""
    return Path(path).name if Path(path).exists() else str(path)


def _official_config(folder: Path) -> dict[str, Any]:
    file = folder / "config.json"
    try:
        return _arguments(json.loads(file.read_text()))
    except (OSError, ValueError) as error:
        raise OfficialWeightsError(
            f"{file} cannot be read: {error}; give the official model's folder transformer/"
        ) from error


def _arguments(config: Mapping[str, Any]) -> dict[str, Any]:
    plain = {key: value for key, value in config.items() if not key.startswith("_")}
    return {key: tuple(value) if key == "axes_dims_rope" else value for key, value in plain.items()}


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


def _name_of(dtype: torch.dtype) -> str:
    for name, known in DTYPES.items():
        if known == dtype:
            return name
    raise LoadingError(f"dtype={dtype} is unknown; choose one of {', '.join(DTYPES)}")
