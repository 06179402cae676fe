"""Denoises: runs the sampler with diffusers' progress bar and callbacks, and converts the results."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from accelerate.hooks import CpuOffload  # type: ignore[import-untyped]
from diffusers import AutoencoderKL
from diffusers.utils import BaseOutput
from PIL import Image
from torch import Tensor

from dsd_lightning.flux import tokens
from dsd_lightning.flux.codec import Codec
from dsd_lightning.images.pixels import to_image
from dsd_lightning.pairs import Condition, TextEmbeddings
from dsd_lightning.pipeline import schedule
from dsd_lightning.sampler import SamplerSettings, sample


@dataclass
class TwoFrameOutput(BaseOutput):
    """The result of a call.

    Attributes:
        images: the results: PIL images; an array [b, h, w, 3] in [0, 1]; or packed latents [b, tokens, d] of the canvas.
        references: the reconstructed reference, in the same form, if it was requested and there is one.
    """

    images: list[Image.Image] | np.ndarray | Tensor
    references: list[Image.Image] | np.ndarray | None = None


class Interrupted(Exception):
    """Raised after a step when a callback has set `pipe._interrupt`."""

    def __init__(self, canvas: Tensor) -> None:
        super().__init__()
        self.canvas = canvas


def run_sampler(
    pipeline: Any,
    condition: Condition,
    null: TextEmbeddings,
    noise: Tensor,
    settings: SamplerSettings,
    strengths: Sequence[float],
    callback: Callable[..., dict[str, Tensor]] | None,
) -> Tensor:
    """Return the canvas that `sample` generates, under the pipeline's progress bar and a callback as diffusers calls it.

    Args:
        pipeline: the `TwoFramePipeline`.
        strengths: of the reference, one a step.
        callback: may return other packed latents, and may set `pipeline._interrupt` to stop after the step.
    """
    pipeline._interrupt = False
    shift = schedule.shift_of(pipeline.scheduler)
    steps = settings.num_inference_steps
    times = schedule.times_of(pipeline.scheduler, steps, pipeline.transformer.image_tokens(noise))
    hook = getattr(pipeline.transformer, "_hf_hook", None)
    if isinstance(hook, CpuOffload):  # what an architecture prepares once an image comes before its first forward
        hook.pre_forward(pipeline.transformer)
    with pipeline.progress_bar(total=steps) as progress:

        def on_step(index: int, canvas: Tensor) -> Tensor | None:
            progress.update()
            replaced = None
            if callback is not None:
                outcome = callback(pipeline, index, times[index], {"latents": tokens.pack(canvas)})
                if outcome and "latents" in outcome:
                    replaced = tokens.unpack(outcome["latents"], *canvas.shape[-2:])
            if pipeline._interrupt:
                raise Interrupted(canvas if replaced is None else replaced)
            return replaced

        try:
            return sample(
                pipeline.transformer, condition, null, noise, settings, shift, on_step, lambda index: strengths[index]
            )
        except Interrupted as interrupted:
            return interrupted.canvas


class SamplingCodec(Codec):
    """Encodes as samples from the posterior."""

    def __init__(self, vae: AutoencoderKL, generator: torch.Generator | list[torch.Generator]) -> None:
        super().__init__(vae)
        self.generator = generator

    def encode(self, pixels: Tensor, *, sample: Any = None) -> Tensor:
        return super().encode(pixels, sample=sample or self.generator)


def as_output(pixels: Tensor, output_type: str) -> Any:
    """Return pixels in [-1, 1] as PIL images ("pil") or as an array [b, h, w, 3] in [0, 1] ("np")."""
    if output_type == "pil":
        return [to_image(each) for each in pixels]
    return ((pixels.cpu().float() + 1) / 2).permute(0, 2, 3, 1).numpy()
