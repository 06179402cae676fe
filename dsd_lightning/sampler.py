"""From a condition and noise to latents: Euler steps along the velocity, with text and image guidance.

True guidance combines up to three predictions (official code, `pipeline.py`):

    v = u + i (u_img - u) + t (c - u_img)  =  (1 - i) u + (i - t) u_img + t c

with u: no text and no reference; u_img: no text, reference; c: text and reference. Only predictions whose factor is not
zero are computed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from dsd_lightning.architectures.base import Architecture, State
from dsd_lightning.pairs import Condition, TextEmbeddings
from dsd_lightning.rectified_flow import FixedShift, NoShift, ResolutionShift, euler_step, sampling_times

Shift = NoShift | FixedShift | ResolutionShift


@dataclass(frozen=True)
class SamplerSettings:
    """How to sample.

    Attributes:
        num_inference_steps: Euler steps.
        guidance_scale: value of the guidance embedding (not read by models without one).
        image_guidance: true guidance by the reference, i; 1 is none.
        text_guidance: true guidance by the text, t; 1 is none.
        guidance_start: index of the first step with true guidance.
    """

    num_inference_steps: int = 28
    guidance_scale: float = 3.5
    image_guidance: float = 1.0
    text_guidance: float = 1.0
    guidance_start: int = 2

    def __post_init__(self) -> None:
        if self.num_inference_steps < 1:
            raise ValueError(f"num_inference_steps={self.num_inference_steps} must be at least 1")
        for name in ("image_guidance", "text_guidance"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name}={getattr(self, name)} must be >= 0; 1.0 means none")


def guidance_factors(image_guidance: float, text_guidance: float) -> dict[str, float]:
    """Return the factor of each prediction that is needed: of "null", "reference" and "full"."""
    factors = {"null": 1 - image_guidance, "reference": image_guidance - text_guidance, "full": text_guidance}
    return {name: factor for name, factor in factors.items() if factor != 0}


@torch.no_grad()
def sample(
    architecture: Architecture,
    condition: Condition,
    null_text: TextEmbeddings,
    noise: Float[Tensor, "b c h w"],
    settings: SamplerSettings,
    shift: Shift,
    on_step: Callable[[int, Tensor], None] | None = None,
) -> Float[Tensor, "b c h w"]:
    """Return the clean canvas that the model draws from `noise` under `condition`.

    Args:
        null_text: embeddings of "no text" (batch 1), read only under text guidance.
        shift: timestep shift, evaluated at the whole canvas's number of image tokens.
        on_step: called after each step with its index and the canvas.
    """
    batch = noise.shape[0]
    times = sampling_times(settings.num_inference_steps, shift(architecture.image_tokens(noise)))
    passes = _conditions(architecture, condition, null_text, batch)
    states: dict[str, State] = {}
    canvas = noise
    for index in range(settings.num_inference_steps):
        guided = index >= settings.guidance_start
        factors = guidance_factors(settings.image_guidance, settings.text_guidance) if guided else {"full": 1.0}
        timestep = times[index].to(canvas.device).expand(batch)
        predicted = torch.zeros_like(canvas, dtype=torch.float32)
        for name, factor in factors.items():
            if name not in states:
                states[name] = architecture.prepare(passes[name])
            predicted += factor * architecture(canvas, timestep, passes[name], states[name]).float()
        canvas = euler_step(canvas, predicted, float(times[index]), float(times[index + 1]))
        if on_step is not None:
            on_step(index, canvas)
    return canvas


def _conditions(
    architecture: Architecture, condition: Condition, null_text: TextEmbeddings, batch: int
) -> dict[str, Condition]:
    no_text = condition.with_text(
        TextEmbeddings(null_text.sequence.expand(batch, -1, -1), null_text.pooled.expand(batch, -1))
    )
    nothing = replace(no_text, reference=architecture.null_reference(condition.reference))
    return {"null": nothing, "reference": no_text, "full": condition}
