"""Loads a pipeline from files, places it on a device, and saves it."""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypeVar

import torch
from diffusers import DiffusionPipeline

from dsd_lightning.flux.quantize import QuantizationError
from dsd_lightning.flux.step_cache import StepCache
from dsd_lightning.models.restore import FOUND, HUB_BASE, Loras
from dsd_lightning.pipeline import loading, memory
from dsd_lightning.pipeline.inputs import InputError

Pipeline = TypeVar("Pipeline", bound="LoadedPipeline")  # not Self, which cannot be checked method by method


class LoadedPipeline(DiffusionPipeline):
    """Loading and saving, which `TwoFramePipeline` inherits. A subclass's arguments are `loading.Parts`.

    Attributes:
        quantized: whether the blocks' weights are in 8 or 4 bits.
        layer_by_layer: whether weights visit the GPU layer by layer.
    """

    quantized = False
    layer_by_layer = False

    @classmethod
    def load(
        cls: type[Pipeline],
        base: str | Path = HUB_BASE,
        transformer: str | Path | None = None,
        lora: Loras = FOUND,
        *,
        dtype: torch.dtype | str | None = None,
        text_length: int | None = None,
        default_size: int | None = None,
        **options: Any,
    ) -> Pipeline:
        """Return a pipeline of the authors' files.

        Args:
            base: FLUX.1-dev's folder or hub id; its own transformer is only read where `transformer` is None.
            transformer: hub id of the official weights, a download of them, or its folder `transformer/`.
            lora: the LoRA file beside the transformer; or a file, folder or hub id, each with `:WEIGHT` if it is to be
                scaled; or several of these; or None. The updates of those after the first are added to the weights.
            dtype: of all weights; bfloat16 on a GPU and float32 elsewhere if None.
            text_length: T5 tokens a prompt. default_size: side of a frame, pixels. If None, what an export of ours
                records beside the weights, or 512.
            options: those of `ready`.

        Raises:
            ModelSourceError: a name that leads to no files.
            OfficialWeightsError: keys that are missing, left over or renamed.
            BaseModelError: the base cannot be loaded.
        """
        chosen = loading.dtype_of(dtype) or (torch.bfloat16 if torch.cuda.is_available() else torch.float32)
        merge_lora = options.get("merge_lora", True)
        parts = loading.official_parts(base, transformer, lora, chosen, merge_lora, text_length, default_size)
        return cls(**parts).ready(**options)

    @classmethod
    def from_run(
        cls: type[Pipeline],
        run: str | Path,
        *,
        ema: bool = True,
        lora: Loras = None,
        dtype: torch.dtype | str | None = None,
        text_length: int | None = None,
        **options: Any,
    ) -> Pipeline:
        """Return a pipeline of a run's folder, of one of its checkpoint folders, or of an exported adapter; any architecture.

        Args:
            run: `outputs/<date>/<time>`, with `config.yaml` and `checkpoints/`; or what `--format adapter` exported, as a
                folder or hub id.
            ema: the EMA weights, where there are any.
            lora: LoRA files whose updates are added to the weights, as `load` takes them.
            dtype: of all weights; that of the run's base if None.
            text_length: T5 tokens a prompt; those of its training if None.
            options: those of `ready`.

        Raises:
            NoRunError: it is none of these, or holds no complete checkpoint.
        """
        merge_lora = options.get("merge_lora", True)
        parts = loading.run_parts(run, ema, loading.dtype_of(dtype), merge_lora, lora, text_length)
        return cls(**parts).ready(**options)

    @classmethod
    def tiny(cls: type[Pipeline], *, dtype: torch.dtype | str | None = None, **options: Any) -> Pipeline:
        """Return a pipeline of the miniature in `assets/`; `options` are those of `ready`."""
        return cls(**loading.tiny_parts(loading.dtype_of(dtype), options.get("merge_lora", True))).ready(**options)

    def ready(
        self: Pipeline,
        merge_lora: bool = True,
        quantize: memory.Quantization | None = None,
        offload: memory.Offload | None = None,
        device: str | torch.device | None = None,
        compile: bool = False,
        step_cache: str | StepCache | None = None,
    ) -> Pipeline:
        """Quantise, place and compile the pipeline, set up its step cache, in this order, and return it.

        Args:
            merge_lora: has no effect here: the loaders merge factors as they load them.
            quantize: 8- or 4-bit weights of the transformer's blocks.
            offload: keep weights in main memory, by part or layer by layer; needs a GPU.
            device: where to compute; the GPU, where there is one, if None.
            compile: compile every kind of block; the first image of each size takes a minute longer.
            step_cache: what sampling steps reuse of earlier ones, such as "first_block:0.1"; see `StepCache`.

        Raises:
            QuantizationError: the library is not installed, or factors are not merged.
            StepCacheError: an unknown cache, or one that this architecture, or `compile`, does not go with.
            ValueError: an unknown offload, or a device that is not there.
        """
        if quantize is not None:
            if offload == "sequential":
                raise QuantizationError(
                    f"quantize={quantize} and offload=sequential do not go together: take offload=model, or no quantisation"
                )
            memory.quantize(self.transformer, quantize)
            self.quantized = True
        self.layer_by_layer = memory.place(self, offload, device) == "sequential"
        cache = StepCache.parse(step_cache) if isinstance(step_cache, str) else step_cache
        if compile:
            if cache is not None:
                cache.require_compilable()
            for unit in self.transformer.shard_units():
                # Below the hooks of a step cache, whose decisions are Python's.
                unit.forward = torch.compile(unit.forward)
        if cache is not None:
            self.transformer.use_step_cache(cache)
        return self

    def save_pretrained(self, save_directory: str | Path, *arguments: Any, **options: Any) -> None:
        """Write a folder for `from_pretrained`, as diffusers does.

        Raises:
            InputError: the weights are quantised, which their formats cannot take back.
        """
        if self.quantized:
            raise InputError("save the pipeline before it is quantised: load it with quantize=None")
        super().save_pretrained(str(save_directory), *arguments, **options)

    @classmethod
    def from_pretrained(cls: type[Pipeline], pretrained_model_name_or_path: str | Path, **options: Any) -> Pipeline:
        """Return a pipeline that `save_pretrained` wrote; `options` are diffusers'."""
        folder = Path(pretrained_model_name_or_path)
        if not folder.is_dir():
            folder = Path(cls.download(str(pretrained_model_name_or_path)))
        if "transformer" not in options:
            dtype = options.get("torch_dtype")
            dtype = dtype if isinstance(dtype, torch.dtype) else None
            options["transformer"] = loading.load_architecture(folder / "transformer", dtype)
        pipeline: Pipeline = super().from_pretrained(str(folder), **options)
        return pipeline
