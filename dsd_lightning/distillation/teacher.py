"""The teacher that generates grids: any text-to-image model in the diffusers layout, through diffusers' own pipeline."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from PIL import Image

from dsd_lightning.compute.device import find_device
from dsd_lightning.distillation.records import DistillationError
from dsd_lightning.export.licences import licence_of_model
from dsd_lightning.files.checkout import in_checkout

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


class DiffusersTeacher:
    """The pipeline that a model's `model_index.json` names, loaded when the first image is asked for.

    FLUX, SD 3.5, SDXL, Z-Image, Qwen-Image and all others that the installed diffusers opens by `DiffusionPipeline`. A setting
    that the pipeline does not have (SDXL: `max_sequence_length`) is not passed on.

    Noise is drawn on the CPU, from a generator an image, so that it depends on neither device nor batch.

    Args:
        path: folder or hub id in the diffusers layout.
        height, width: of a grid, pixels.
        num_inference_steps: steps of the sampler.
        guidance_scale: of the guidance embedding (FLUX) or of classifier-free guidance; None takes the pipeline's default.
        max_sequence_length: tokens a prompt; None takes the pipeline's default.
        batch_size: grids generated at once.
        dtype: float32, bfloat16 or float16.
        device: "auto" takes CUDA where there is a device.
        offload: "none", "model" (parts come to the GPU when needed) or "sequential" (layers do; slowest, least memory).
        compile: compile the transformer; takes minutes once, pays over many grids of one size.
        lora: folder or hub id of LoRA factors for the transformer, as diffusers loads them; None generates with the plain
            teacher.
        licence: fields `license`, `license_name`, `license_link` that bind the images; None takes those that the model's
            folder or hub id is known to have.
        arguments: further arguments of the pipeline's call, such as `negative_prompt` or `true_cfg_scale`.

    Raises:
        DistillationError: a value that makes no sense.
        DeviceError: a device that is not there.
    """

    def __init__(
        self,
        path: str,
        height: int,
        width: int,
        num_inference_steps: int,
        guidance_scale: float | None,
        max_sequence_length: int | None,
        batch_size: int,
        dtype: str = "bfloat16",
        device: str = "auto",
        offload: Literal["none", "model", "sequential"] = "none",
        compile: bool = False,
        lora: str | None = None,
        licence: Mapping[str, str] | None = None,
        arguments: Mapping[str, Any] | None = None,
    ) -> None:
        if dtype not in DTYPES:
            raise DistillationError(f"agents.teacher.dtype={dtype!r}: choose one of {', '.join(DTYPES)}")
        if offload not in ("none", "model", "sequential"):
            raise DistillationError(f"agents.teacher.offload={offload!r}: choose none, model or sequential")
        if min(height, width, num_inference_steps, batch_size) < 1:
            raise DistillationError(
                f"agents.teacher: height={height}, width={width}, num_inference_steps={num_inference_steps} and "
                f"batch_size={batch_size} must all be at least 1"
            )
        self.path, self.height, self.width = path, height, width
        self.steps, self.guidance_scale, self.max_sequence_length = (
            num_inference_steps,
            guidance_scale,
            max_sequence_length,
        )
        self.batch_size, self.dtype, self.offload, self.compile, self.lora = batch_size, dtype, offload, compile, lora
        self.device = find_device(device, "agents.teacher.device")
        self.arguments = dict(arguments or {})
        self._licence = licence
        self._pipeline: Any = None

    def settings(self) -> Mapping[str, Any]:
        """Return what determines the images; batches, offload and compilation do not, but for rounding."""
        return {
            "path": self.path,
            "size": [self.height, self.width],
            "num_inference_steps": self.steps,
            "guidance_scale": self.guidance_scale,
            "max_sequence_length": self.max_sequence_length,
            "dtype": self.dtype,
            "lora": self.lora,
            **({"arguments": self.arguments} if self.arguments else {}),
        }

    def licence(self) -> Mapping[str, str]:
        """Return the model's name and the fields of its licence, `license: unknown` where it states none."""
        licence = licence_of_model(self.path)
        return {"teacher": licence.base_model or Path(self.path).name, **(self._licence or licence.fields)}

    def generate(self, prompts: Sequence[str], seeds: Sequence[int]) -> list[Image.Image]:
        """Return an image for each prompt."""
        pipeline = self._loaded()
        given = {"guidance_scale": self.guidance_scale, "max_sequence_length": self.max_sequence_length}
        accepted = inspect.signature(type(pipeline).__call__).parameters
        chosen = {name: value for name, value in given.items() if value is not None and name in accepted}
        images: list[Image.Image] = []
        for start in range(0, len(prompts), self.batch_size):
            some = slice(start, start + self.batch_size)
            images += pipeline(
                prompt=list(prompts[some]),  # by name: what comes first differs from pipeline to pipeline
                height=self.height,
                width=self.width,
                num_inference_steps=self.steps,
                generator=[torch.Generator().manual_seed(seed) for seed in seeds[some]],
                **chosen,
                **self.arguments,
            ).images
        return images

    def _loaded(self) -> Any:
        if self._pipeline is None:
            from diffusers import DiffusionPipeline
            from diffusers.utils import logging as diffusers_logging

            diffusers_logging.disable_progress_bar()
            pipeline = DiffusionPipeline.from_pretrained(in_checkout(self.path), dtype=DTYPES[self.dtype])
            if self.lora is not None:
                pipeline.load_lora_weights(self.lora)
                pipeline.fuse_lora()
            if self.offload == "model":
                pipeline.enable_model_cpu_offload(device=self.device)
            elif self.offload == "sequential":
                pipeline.enable_sequential_cpu_offload(device=self.device)
            else:
                pipeline.to(self.device)
            if self.compile:
                denoiser = getattr(pipeline, "transformer", None) or pipeline.unet
                denoiser.compile_repeated_blocks(fullgraph=True)
            pipeline.set_progress_bar_config(disable=True)
            self._pipeline = pipeline
        return self._pipeline

    def close(self) -> None:
        """Free the pipeline's memory."""
        self._pipeline = None
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
