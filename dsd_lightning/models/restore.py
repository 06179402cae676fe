"""Restores models: from a run, a checkpoint, an exported adapter or official files to an architecture with its weights.

The only place that does it. Training (`init_from`), generation, evaluation, export and the page all call it, so that a run
is used with the very weights that it was trained on.
"""

from __future__ import annotations

import inspect
import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from diffusers import FluxTransformer2DModel
from omegaconf import DictConfig, OmegaConf
from torch import nn

from dsd_lightning.architectures.base import Architecture
from dsd_lightning.architectures.parallel import Parallel
from dsd_lightning.checkpoints.adapter import HEADER, OFFICIAL_BASE, WEIGHTS, load_adapter, read_header
from dsd_lightning.checkpoints.folder_io import find_last
from dsd_lightning.checkpoints.lora_files import LoraFile, add_updates
from dsd_lightning.checkpoints.official import OfficialWeightsError, is_official, load_official, load_official_folder
from dsd_lightning.files.checkout import in_checkout
from dsd_lightning.flux.base import DTYPES, FluxBase
from dsd_lightning.flux.lora import merge
from dsd_lightning.models.generation_settings import GenerationSettings
from dsd_lightning.models.hub import OfficialFiles, download, find_lora, find_official, is_hub_id
from dsd_lightning.models.trusted import build_trusted
from dsd_lightning.runs.folder import CHECKPOINTS, CONFIG, NoRunError, read_config

log = logging.getLogger(__name__)

HUB_BASE = "black-forest-labs/FLUX.1-dev"
"""The base of the authors' weights."""

FOUND = "found"
"""Instead of a LoRA file: the one beside the transformer."""

Loras = str | Path | Sequence[str | Path] | None
"""Names of LoRA files."""


@dataclass(frozen=True)
class Restored:
    """A model that can be used: an architecture with its trained weights in place, and what it was made with.

    Attributes:
        architecture: complete; factors not merged yet.
        base: whose other parts belong to it.
        config: of its training: `base`, `arch`, and as much more as is recorded.
        checkpoint: the folder of the trained weights.
        run: the folder of its configuration.
    """

    architecture: Architecture
    base: FluxBase
    config: DictConfig
    checkpoint: Path
    run: Path


def start_from(folder: str | Path, architecture: Architecture) -> None:
    """Load the weights in `folder` into `architecture`: an adapter or run of ours, or a download of the official weights.

    Raises:
        FileNotFoundError: if the folder is none of these, naming what they have.
        AdapterMismatchError, OfficialWeightsError, DamagedError: see there.
    """
    folder = Path(folder)
    if not (folder / HEADER).is_file() and is_official(folder):
        load_official_folder(architecture, folder)
    elif (folder / CHECKPOINTS).is_dir():
        load_adapter(find_run(folder)[1], architecture)
    else:
        load_adapter(folder, architecture)


def find_run(folder: Path) -> tuple[Path, Path]:
    """Return (folder of the configuration, folder of the trained weights) of a run, one of its checkpoints, or an adapter.

    Raises:
        NoRunError: if there is no complete checkpoint.
    """
    if (folder / HEADER).is_file():
        return (folder if (folder / CONFIG).is_file() else folder.absolute().parents[1]), folder
    if not (folder / CHECKPOINTS).is_dir():
        read_config(folder)  # which says what a run's folder has
    checkpoint = find_last(folder / CHECKPOINTS)
    if checkpoint is None:
        raise NoRunError(f"{folder} holds no complete checkpoint (looked in {folder / CHECKPOINTS})")
    return folder, checkpoint


def restore(
    folder: str | Path, ema: bool = True, base_path: str | None = None, dtype: torch.dtype | None = None
) -> Restored:
    """Build the architecture of a run from its recorded configuration, with the weights it trained.

    Args:
        folder: a run folder, one of its checkpoint folders, or an exported adapter with its `config.yaml`; of the latter a
            hub id as well.
        ema: the EMA weights rather than the last ones.
        base_path: where the base is now, if not where the run had it.
        dtype: of the base's weights; the run's if None.

    Raises:
        NoRunError: if there is no checkpoint or no recorded configuration.
        ModelSourceError: a hub id that cannot be downloaded.
        BaseModelError, AdapterMismatchError, DamagedError: see there.
    """
    if is_hub_id(folder):
        folder = download(str(folder), [HEADER, WEIGHTS, CONFIG])
    run, checkpoint = find_run(Path(folder))
    if not (run / CONFIG).is_file():
        raise NoRunError(
            f"{folder} does not say how its model is built: there is no {run / CONFIG}; only its adapter can be exported "
            "(--format adapter)"
        )
    config = read_config(run)
    if base_path is not None:
        config.base.model.path = base_path
    return restore_adapter(config, checkpoint, ema, dtype, run)


def restore_adapter(
    config: DictConfig, checkpoint: Path, ema: bool = True, dtype: torch.dtype | None = None, run: Path | None = None
) -> Restored:
    """Build an architecture from a training configuration (`base`, `arch`, `init_from`) with trained weights.

    Args:
        config: that the weights were trained with.
        checkpoint: folder of the trained weights.
        ema: the EMA weights rather than the last ones.
        dtype: of the base's weights; the configuration's if None.
        run: folder of the configuration; that of the weights if None.

    Raises:
        FileNotFoundError: if official weights that the training started from are gone.
        UntrustedTargetError: if the configuration names something to be called that no run needs.
        BaseModelError, AdapterMismatchError, DamagedError: see there.
    """
    place = (run or checkpoint) / CONFIG
    base: FluxBase = build_trusted(config.base.model, place)
    base = replace(base, path=in_checkout(base.path), dtype=base.dtype if dtype is None else name_of(dtype))
    base.require_parts()
    architecture: Architecture = build_trusted(config.arch, place)(transformer=base.transformer())
    header = read_header(checkpoint)
    if header.get(OFFICIAL_BASE) or (architecture.lora is None and header.get("lora") is not None):
        # Official weights took the base's place, or brought the factors' layers along.
        official = in_checkout(str(config.get("init_from")))
        if not is_official(official):
            raise FileNotFoundError(
                f"{checkpoint} was trained on official weights, which are not in init_from={official} any more: put them "
                f"back, or write their new folder into {place}"
            )
        start_from(official, architecture)
    load_adapter(checkpoint, architecture, ema)
    return Restored(architecture.eval(), base, config, checkpoint, run or checkpoint)


def restore_official(
    base: str | Path, transformer: str | Path | None, lora: Loras, dtype: torch.dtype, text_length: int | None = None
) -> tuple[Architecture, FluxBase, GenerationSettings]:
    """Return the authors' model (a FLUX base, the official transformer, and LoRA files) and what to use it with.

    The base's own transformer is only read where there is no official one.

    Args:
        base: folder or hub id.
        transformer: what `find_official` takes; None for the base's own.
        lora: what `find_lora` takes, one or several; FOUND takes the file beside the transformer, None takes none. The first
            one's factors are attached, the updates of the others are added to the weights.
        dtype: of all weights.
        text_length: T5 tokens a prompt; if None, what is recorded beside the weights, or 512.

    Raises:
        ModelSourceError: a name that leads to no files.
        OfficialWeightsError: files that are not in the official layout or do not fit; weights missing or left over.
        BaseModelError: the base cannot be loaded.
    """
    files = OfficialFiles(None, None) if transformer is None else find_official(transformer)
    loras = lora_files(lora, files.lora)
    settings = files.settings or GenerationSettings()
    if text_length is not None:
        settings = replace(settings, text_length=text_length)
    flux = FluxBase(in_checkout(str(base)), dtype=name_of(dtype), text_length=settings.text_length)
    if files.transformer is None:
        network = flux.transformer()
    else:
        config = _transformer_config(files.transformer)
        guidance = 1.0 if config.get("guidance_embeds") else None
        flux = replace(flux, initialise="meta", transformer_config=config, guidance_scale=guidance)
        flux.require_text_widths(config, files.transformer / "config.json")
        network = flux.transformer().to_empty(device="cpu")  # filled below, or refused
    architecture = Parallel(network)
    if files.transformer is not None:
        load_official(architecture, files.transformer)
    elif not loras:
        log.warning("neither official weights nor a LoRA: plain FLUX does not look at the reference")
    for each in loras[1:]:
        add_updates(network, each)
    if loras:
        load_official(architecture, lora=loras[0].path, scale=loras[0].weight)
    return architecture.eval(), flux, settings


def lora_files(names: Loras, beside: Path | None = None) -> list[LoraFile]:
    """Return the LoRA files of names; FOUND stands for the one beside a transformer, if there is one.

    Raises:
        ModelSourceError, OfficialWeightsError: as `find_lora`.
    """
    if names == FOUND:
        return [] if beside is None else [LoraFile(beside)]
    return [find_lora(name) for name in ([names] if isinstance(names, str | Path) else names or ())]


def finish_for_inference(architecture: Architecture, dtype: torch.dtype | None, merge_lora: bool) -> None:
    """Merge the factors, freeze, and cast, in this order; whoever quantises does it after this.

    Args:
        architecture: changed in place.
        dtype: of all weights; as they are if None.
        merge_lora: False keeps the factors apart.
    """
    if merge_lora:
        merge(architecture.transformer)
        architecture.lora = None
    architecture.requires_grad_(False).eval()
    if dtype is not None:
        nn.Module.to(architecture, dtype)  # diffusers' own `to` warns of modules that FLUX does not have


def config_of_adapter(adapter: Path, base: Path) -> DictConfig:
    """Return the configuration of an adapter of arch=parallel without a recorded one, from its header.

    Args:
        adapter: folder with `adapter.json`.
        base: YAML file of its base.
    """
    lora = read_header(adapter)["lora"]
    factors = {"rank": lora["rank"], "alpha": int(lora["alpha"]), "targets": lora["targets"]}
    arch = {
        "_target_": f"{Parallel.__module__}.{Parallel.__qualname__}",
        "_partial_": True,
        "lora": {"_target_": "dsd_lightning.flux.lora.Lora", **factors},
    }
    return OmegaConf.create({"base": OmegaConf.load(base), "arch": arch})


def network_arguments(config: Mapping[str, Any], file: Path | None = None) -> dict[str, Any]:
    """Return the arguments of FluxTransformer2DModel in a stored configuration; others are passed over with a note."""
    parameters = inspect.signature(FluxTransformer2DModel.__init__).parameters
    plain = {key: value for key, value in config.items() if not key.startswith("_")}
    if unknown := sorted(set(plain) - set(parameters)):
        log.warning(
            "%s: passed over %s, which diffusers' FluxTransformer2DModel does not have", file, ", ".join(unknown)
        )
    plain = {key: value for key, value in plain.items() if key in parameters}
    return {key: tuple(value) if key == "axes_dims_rope" else value for key, value in plain.items()}


_TRANSFORMER = "FluxTransformer2D"
"""How the names of diffusers' and of the authors' transformer begin."""


def _transformer_config(folder: Path) -> dict[str, Any]:
    file = folder / "config.json"
    try:
        config = json.loads(file.read_text())
        kind = str(config.get("_class_name", _TRANSFORMER))
        if not kind.startswith(_TRANSFORMER):
            raise ValueError(f"it describes a {kind}, and no {_TRANSFORMER}")
        return network_arguments(config, file)
    except (OSError, ValueError, AttributeError, TypeError) as error:
        raise OfficialWeightsError(
            f"{file} cannot be read: {error}; give the official model's folder transformer/"
        ) from error


def name_of(dtype: torch.dtype) -> str:
    """Return a dtype's name in the configuration.

    Raises:
        ValueError: one that no base can have.
    """
    for name, each in DTYPES.items():
        if each == dtype:
            return name
    raise ValueError(f"dtype={dtype} is unknown; choose one of {', '.join(DTYPES)}")
