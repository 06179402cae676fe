"""Writes the layouts of other programs, one function for each; all fill an empty folder."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import diffusers
import torch
from diffusers import FluxTransformer2DModel
from huggingface_hub import snapshot_download
from safetensors.torch import save_file
from torch import Tensor

from dsd_lightning.architectures.base import Architecture
from dsd_lightning.architectures.parallel import Parallel
from dsd_lightning.checkpoints.official import LORA_FILE, PREFIX, TRANSFORMER_FILE
from dsd_lightning.export.stock import BESIDE_FP8, FP8, ExportError, Factors, factors, stock_transformer, weights
from dsd_lightning.flux.base import PARTS, FluxBase

COMPONENTS = {
    "scheduler": ("diffusers", "scheduler_config.json", "_class_name"),
    "text_encoder": ("transformers", "config.json", "architectures"),
    "text_encoder_2": ("transformers", "config.json", "architectures"),
    "tokenizer": ("transformers", "tokenizer_config.json", "tokenizer_class"),
    "tokenizer_2": ("transformers", "tokenizer_config.json", "tokenizer_class"),
    "vae": ("diffusers", "config.json", "_class_name"),
}
"""The parts that an export copies from the base: their library, and the file and key that name their class."""

ONE_FILE = "1TB"
"""Shard size under which diffusers splits nothing: the official code and ComfyUI-DSD read a single file."""


@dataclass(frozen=True)
class Exported:
    """The model being exported: the trained architecture, its base, and how it is to be written.

    `dtype` None keeps the base's for the transformer's weights, and float32 for factors. `title` goes into file headers.
    """

    architecture: Architecture
    base: FluxBase
    dtype: torch.dtype | None
    merged: bool
    title: str
    license: str

    @property
    def weights_dtype(self) -> torch.dtype:
        """Of the transformer's weights."""
        return self.base.torch_dtype if self.dtype is None else self.dtype

    @property
    def factors_dtype(self) -> torch.dtype:
        """Of factors: never eight bits, which would round away what was learned."""
        return torch.float32 if self.dtype is None else BESIDE_FP8 if self.dtype == FP8 else self.dtype


def write_official(exported: Exported, folder: Path) -> None:
    """Write `transformer/` (one file, with `c_embedder`) and the factors, as primecai/dsd_model has them.

    Merged, the transformer holds the factors' updates, and the factors that go along, because the official code insists on
    some, are zero.

    Raises:
        ExportError: if the architecture is not the official one.
    """
    architecture = _official(exported)
    out = folder / "transformer"
    out.mkdir()
    save_file(
        weights(architecture, exported.merged, exported.weights_dtype),
        out / TRANSFORMER_FILE,
        metadata={"format": "pt"},
    )
    config = {"_class_name": "FluxTransformer2DModel", "_diffusers_version": diffusers.__version__}
    config |= {key: value for key, value in architecture.transformer.config.items() if not key.startswith("_")}
    (out / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    trained = factors(architecture)
    write_factors(
        exported, folder / LORA_FILE, _zero_factors(architecture) if exported.merged or not trained else trained
    )


def write_comfyui(exported: Exported, folder: Path) -> None:
    """Write what ComfyUI reads: for `parallel` a folder to put in place as `models/dsd_model`, else factors alone.

    ComfyUI-DSD asks of the official layout: one transformer file with every key, factors always, no alpha. ComfyUI's own
    LoRA loader reads the factors' file of an architecture without reference (`models/loras`).

    Raises:
        ExportError: if neither fits.
    """
    if isinstance(exported.architecture, Parallel):
        write_official(exported, folder)
        return
    if exported.architecture.stock_pipeline != "FluxPipeline" or exported.merged or not factors(exported.architecture):
        raise ExportError(
            f"ComfyUI has no node for arch={exported.architecture.name}"
            + (
                " without factors of its own (arch.lora=null, or merged)"
                if exported.architecture.name == "text_only"
                else ""
            )
            + f": ComfyUI-DSD reads arch=parallel, and ComfyUI's LoRA loader factors on plain FLUX; {_instead(exported)}"
        )
    write_factors(exported, folder / LORA_FILE, factors(exported.architecture))


def write_diffusers(exported: Exported, folder: Path) -> None:
    """Write a complete pipeline folder of a stock diffusers class, with everything trained merged into the transformer.

    Raises:
        ExportError: if no stock pipeline computes the same, or the base lacks a part.
    """
    try:
        transformer = stock_transformer(exported.architecture, exported.weights_dtype)
    except ExportError as error:
        raise ExportError(f"{error}; {_instead(exported)}") from error
    source = base_folder(exported.base)
    index = source / "model_index.json"
    listed = json.loads(index.read_text()) if index.is_file() else {}
    components = {part: listed.get(part) or _component(source, part) for part in COMPONENTS}
    for part in components:
        shutil.copytree(source / part, folder / part)
    transformer.save_pretrained(folder / "transformer")
    content = {
        "_class_name": exported.architecture.stock_pipeline,
        "_diffusers_version": diffusers.__version__,
        **components,
        "transformer": ["diffusers", FluxTransformer2DModel.__name__],
    }
    (folder / "model_index.json").write_text(json.dumps(content, indent=2, sort_keys=True) + "\n")


def write_transformer(exported: Exported, folder: Path) -> None:
    """Write diffusers' FluxTransformer2DModel alone, everything trained merged into it, in one file.

    Raises:
        ExportError: if no stock transformer computes the same.
    """
    try:
        transformer = stock_transformer(exported.architecture, exported.weights_dtype)
    except ExportError as error:
        raise ExportError(f"{error}; {_instead(exported)}") from error
    transformer.save_pretrained(folder, max_shard_size=ONE_FILE)


LAYOUTS: Mapping[str, Callable[[Exported, Path], None]] = {
    "official": write_official,
    "comfyui": write_comfyui,
    "diffusers": write_diffusers,
    "transformer": write_transformer,
}
"""The layouts beside this project's own, by what `--format` calls them."""


def possible_formats(architecture: Architecture) -> list[str]:
    """Return the formats that can hold a run of `architecture`, this project's own (`adapter`) first."""
    formats = ["adapter"]
    if isinstance(architecture, Parallel):
        formats.append("official")
    if isinstance(architecture, Parallel) or (
        architecture.stock_pipeline == "FluxPipeline" and architecture.lora is not None
    ):
        formats.append("comfyui")
    if architecture.stock_pipeline is not None:
        formats += ["diffusers", "transformer"]
    return formats


def write_factors(exported: Exported, file: Path, by_layer: Mapping[str, Factors]) -> None:
    """Write factors as diffusers, ComfyUI and the official code read them: every key under `transformer.`, no alpha.

    The scale is folded into lora_B. The header repeats it as `lora_adapter_metadata` (alpha = rank) and in the fields of
    Stability's modelspec; all values are strings.
    """
    tensors: dict[str, Tensor] = {}
    for name, pair in by_layer.items():
        tensors[f"{PREFIX}{name}.lora_A.weight"] = pair.a.cpu().to(exported.factors_dtype).contiguous()
        tensors[f"{PREFIX}{name}.lora_B.weight"] = pair.b.cpu().to(exported.factors_dtype).contiguous()
    rank = next(iter(by_layer.values())).a.shape[0]
    # peft takes a list of names for their endings, and the output head's is also how the single blocks' last layers end.
    targets: Any = "|".join(re.escape(name) for name in by_layer) if "proj_out" in by_layer else list(by_layer)
    settings = {"r": rank, "lora_alpha": rank, "target_modules": targets}
    metadata = {
        "format": "pt",
        "lora_adapter_metadata": json.dumps({f"{PREFIX}{key}": value for key, value in settings.items()}),
        "modelspec.sai_model_spec": "1.0.0",
        "modelspec.architecture": "flux-1-dev/lora",
        "modelspec.implementation": "diffusers",
        "modelspec.title": exported.title,
        "modelspec.license": exported.license,
    }
    save_file(tensors, file, metadata=metadata)


def base_folder(base: FluxBase) -> Path:
    """Return the base's folder; of a hub id the parts beside its transformer are fetched if they are not here yet."""
    if Path(base.path).is_dir():
        return Path(base.path)
    parts = [f"{part}/*" for part in PARTS if part != "transformer"]
    return Path(snapshot_download(base.path, allow_patterns=["model_index.json", *parts]))


def _component(source: Path, part: str) -> list[str]:
    """Return what model_index.json says of a part: its library and class."""
    library, file, key = COMPONENTS[part]
    kind = json.loads((source / part / file).read_text())[key]
    return [library, kind[0] if isinstance(kind, list) else kind]


def _official(exported: Exported) -> Parallel:
    if not isinstance(exported.architecture, Parallel):
        raise ExportError(
            f"the official layout is that of arch=parallel, two frames and a c_embedder; this run has "
            f"arch={exported.architecture.name}: {_instead(exported)}"
        )
    return exported.architecture


def _zero_factors(architecture: Architecture) -> dict[str, Factors]:
    """Return factors of rank 1 on one layer that change nothing."""
    name = "transformer_blocks.0.attn.to_q"
    layer = architecture.transformer.get_submodule(name)
    return {name: Factors(torch.zeros(1, layer.in_features), torch.zeros(layer.out_features, 1))}


def _instead(exported: Exported) -> str:
    return f"this run can be exported with --format {', '.join(possible_formats(exported.architecture))}"
