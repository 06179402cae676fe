"""Loads the base model from one folder or hub id in the diffusers layout, tiny or real alike."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, FluxTransformer2DModel
from diffusers.models.attention_dispatch import AttentionBackendName
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
from torch import nn
from transformers import AutoConfig, AutoTokenizer, CLIPTextModel, PreTrainedTokenizerFast, T5EncoderModel

from dsd_lightning.flux.codec import Codec
from dsd_lightning.flux.text import TextEncoder
from dsd_lightning.rectified_flow import FixedShift, NoShift, ResolutionShift

log = logging.getLogger(__name__)

PARTS = ("scheduler", "text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2", "transformer", "vae")
"""Sub-folders of a FLUX model in the diffusers layout."""

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


Shift = NoShift | FixedShift | ResolutionShift


class BaseModelError(ValueError):
    """A base model that cannot be loaded; the message names the folder or hub id, the part and the remedy."""


@dataclass(frozen=True)
class FluxBase:
    """A FLUX base model by name; parts are loaded on demand.

    Attributes:
        path: folder or hub id in the diffusers layout.
        dtype: dtype of the frozen weights: float32, bfloat16 or float16.
        text_length: T5 tokens a prompt.
        guidance_scale: value of the guidance embedding in training; None for models without one.
        transformer_config: FluxTransformer2DModel's configuration. Needed only to build without weights.
        initialise: "pretrained" loads weights; "random" initialises them (pretraining); "meta" builds without memory.
        text_cache: prompts whose embeddings stay in memory.
        attention_backend: diffusers' name of the attention kernel ("native", "_native_math", "_native_cudnn", "flash",
            ...); None leaves the choice to PyTorch.
    """

    path: str
    dtype: str = "float32"
    text_length: int = 512
    guidance_scale: float | None = 1.0
    transformer_config: Mapping[str, Any] | None = None
    initialise: str = "pretrained"
    text_cache: int = 0
    attention_backend: str | None = None

    def __post_init__(self) -> None:
        if self.dtype not in DTYPES:
            raise BaseModelError(f"base.model.dtype={self.dtype!r} is unknown; choose one of {', '.join(DTYPES)}")
        if self.initialise not in ("pretrained", "random", "meta"):
            raise BaseModelError(
                f"base.model.initialise={self.initialise!r} is unknown; choose pretrained, random or meta"
            )
        if self.initialise != "pretrained" and self.transformer_config is None:
            raise BaseModelError(f"base.model.initialise={self.initialise} needs base.model.transformer_config")
        backends = [backend.value for backend in AttentionBackendName]
        if self.attention_backend is not None and self.attention_backend not in backends:
            raise BaseModelError(
                f"base.model.attention_backend={self.attention_backend!r} is unknown; choose null or one of "
                f"{', '.join(backends)}"
            )

    @property
    def torch_dtype(self) -> torch.dtype:
        """The frozen weights' dtype."""
        return DTYPES[self.dtype]

    def without_memory(self) -> FluxBase:
        """Return the same base with a transformer that has shapes and no weights."""
        config = self.transformer_config
        if config is None:
            stored = FluxTransformer2DModel.load_config(self.path, subfolder="transformer")
            config = {name: value for name, value in stored.items() if not name.startswith("_")}
        return replace(self, initialise="meta", transformer_config=config)

    def transformer(self) -> FluxTransformer2DModel:
        """Return the transformer, frozen, as diffusers has it."""
        if self.initialise == "pretrained":
            model = self._load(FluxTransformer2DModel, "transformer", torch_dtype=self.torch_dtype)
        else:
            config = {
                key: tuple(v) if key == "axes_dims_rope" else v for key, v in (self.transformer_config or {}).items()
            }
            with torch.device("meta" if self.initialise == "meta" else "cpu"):
                model = FluxTransformer2DModel(**config)
            nn.Module.to(model, self.torch_dtype)  # diffusers' own `to` warns of modules that FLUX does not have
        model.requires_grad_(False)
        if self.attention_backend is not None:
            model.set_attention_backend(self.attention_backend)
        if bool(model.config.guidance_embeds) != (self.guidance_scale is not None):
            raise BaseModelError(
                f"base.model.guidance_scale={self.guidance_scale}, but the transformer of {self.path!r} has "
                f"guidance_embeds={model.config.guidance_embeds}; give a number for guidance-distilled models "
                "(FLUX.1-dev: 1.0) and null for others"
            )
        return model

    def codec(self) -> Codec:
        """Return the VAE, frozen, with FLUX's normalisation."""
        return Codec(self._load(AutoencoderKL, "vae", torch_dtype=self.torch_dtype))

    def text_encoder(self) -> TextEncoder:
        """Return both text encoders, frozen, with their tokenizers."""
        return TextEncoder(
            clip=self._load(CLIPTextModel, "text_encoder", dtype=self.torch_dtype),
            clip_tokenizer=self._load(AutoTokenizer, "tokenizer"),
            t5=self._load(T5EncoderModel, "text_encoder_2", dtype=self.torch_dtype),
            t5_tokenizer=self._load(self._t5_tokenizer_class(), "tokenizer_2"),
            sequence_length=self.text_length,
            cache_size=self.text_cache,
        )

    def _t5_tokenizer_class(self) -> Any:
        # transformers' own T5 tokenizer rebuilds the normaliser (it drops repeated spaces); the published file is followed.
        folder = Path(self.path) / "tokenizer_2"
        return (
            AutoTokenizer if folder.is_dir() and not (folder / "tokenizer.json").is_file() else PreTrainedTokenizerFast
        )

    def shift(self) -> Shift:
        """Return the timestep shift that the base's scheduler asks for."""
        return shift_of(self.scheduler_config())

    def resolution_shift(self) -> ResolutionShift:
        """Return the shift by resolution that the base's scheduler asks for.

        Raises:
            BaseModelError: if the scheduler has no dynamic shifting.
        """
        shift = self.shift()
        if not isinstance(shift, ResolutionShift):
            raise BaseModelError(f"the scheduler of {self.path!r} has no dynamic shifting, but {shift}")
        return shift

    def require_parts(self) -> None:
        """Refuse a local folder that lacks a part, at once and by name.

        Raises:
            BaseModelError: naming all missing parts.
        """
        folder = Path(self.path)
        if not folder.exists():
            if self.path.startswith((".", "/", "~", "assets/")) or self.path.count("/") != 1:
                raise BaseModelError(
                    f"base.model.path={self.path!r}: no such folder, and no hub id (owner/name) either"
                )
            return
        needed = [part for part in PARTS if part != "transformer" or self.initialise == "pretrained"]
        missing = [part for part in needed if not (folder / part).is_dir()]
        if missing:
            raise BaseModelError(
                f"base.model.path={self.path!r} lacks {', '.join(missing)}: a FLUX model in the diffusers layout has the "
                f"folders {', '.join(PARTS)}"
            )

    def require_text_widths(self, transformer_config: Mapping[str, Any], place: object) -> None:
        """Refuse a transformer that reads text of other widths than the base's encoders write; reads configurations alone.

        Raises:
            BaseModelError: naming both widths, and `place`, where the transformer's configuration is.
        """
        encoders = (
            ("text_encoder_2", "d_model", "joint_attention_dim"),
            ("text_encoder", "hidden_size", "pooled_projection_dim"),
        )
        for part, theirs, ours in encoders:
            width, read = int(getattr(self._load(AutoConfig, part), theirs)), transformer_config.get(ours)
            if read is not None and width != read:
                raise BaseModelError(
                    f"{place} says {ours}={read}, but {part} of {self.path!r} writes {width} values a token; give the base "
                    "that the transformer was trained with (--base_path)"
                )

    def scheduler_config(self) -> dict[str, Any]:
        local = Path(self.path) / "scheduler" / "scheduler_config.json"
        if local.exists():
            return dict(json.loads(local.read_text()))
        from diffusers import FlowMatchEulerDiscreteScheduler

        return dict(self._load(FlowMatchEulerDiscreteScheduler, "scheduler").config)

    def _load(self, kind: Any, part: str, **options: Any) -> Any:
        self.require_parts()
        try:
            return kind.from_pretrained(self.path, subfolder=part, **options)
        except (OSError, ValueError, HFValidationError, HfHubHTTPError, LocalEntryNotFoundError) as error:
            raise BaseModelError(
                f"cannot load {part!r} of base.model.path={self.path!r}: {error}\n"
                "Give a folder in the diffusers layout, or a hub id you have access to (FLUX.1-dev is gated: accept its "
                "licence on its page and run `hf auth login`)."
            ) from error


def shift_of(scheduler_config: Mapping[str, Any]) -> Shift:
    """Return the timestep shift of a configuration of diffusers' FlowMatchEulerDiscreteScheduler."""
    if scheduler_config.get("use_dynamic_shifting"):
        return ResolutionShift(
            base_tokens=scheduler_config["base_image_seq_len"],
            max_tokens=scheduler_config["max_image_seq_len"],
            base_mu=float(scheduler_config["base_shift"]),
            max_mu=float(scheduler_config["max_shift"]),
        )
    factor = float(scheduler_config.get("shift", 1.0))
    return NoShift() if factor == 1 else FixedShift(factor)
