"""From a condition and noise to latents: Euler steps along the velocity, with text and image guidance.

True guidance combines up to three predictions (official code, `pipeline.py`):

    v = u + i (u_img - u) + t (c - u_img)  =  (1 - i) u + (i - t) u_img + t c

with u: no text and no reference; u_img: no text, reference; c: text and reference. Only predictions whose factor is not
zero are computed.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from dsd_lightning.architectures.base import Architecture, State
from dsd_lightning.pairs import Condition, TextEmbeddings
from dsd_lightning.rectified_flow import FixedShift, NoShift, ResolutionShift, euler_step, sampling_times

Shift = NoShift | FixedShift | ResolutionShift

BATCHED_TOKENS = 1024
"""Batch times tokens of a pass up to which a step's passes run as one batch, unless the settings say; on small inputs
calls cost more than arithmetic (benchmarks/guidance.py measures where that ends)."""


@dataclass(frozen=True)
class SamplerSettings:
    """How to sample.

    Attributes:
        num_inference_steps: Euler steps.
        guidance_scale: value of the guidance embedding (not read by models without one).
        image_guidance: true guidance by the reference, i; 1 is none.
        text_guidance: true guidance by the text, t; 1 is none.
        guidance_start: index of the first step with true guidance.
        batch_passes: whether a guided step's passes go through the model as one batch; None decides by their size.
    """

    num_inference_steps: int = 28
    guidance_scale: float = 3.5
    image_guidance: float = 1.0
    text_guidance: float = 1.0
    guidance_start: int = 2
    batch_passes: bool | None = None

    def __post_init__(self) -> None:
        if self.num_inference_steps < 1:
            raise ValueError(f"num_inference_steps={self.num_inference_steps} must be at least 1")
        for name in ("guidance_scale", "image_guidance", "text_guidance"):
            if not math.isfinite(getattr(self, name)):
                raise ValueError(f"{name}={getattr(self, name)} must be a finite number")
        for name in ("image_guidance", "text_guidance"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name}={getattr(self, name)} must be >= 0; 1.0 means none")


def guidance_factors(image_guidance: float, text_guidance: float) -> dict[str, float]:
    """Return the factor of each prediction that is needed: of "null", "reference" and "full"."""
    factors = {"null": 1 - image_guidance, "reference": image_guidance - text_guidance, "full": text_guidance}
    return {name: factor for name, factor in factors.items() if factor != 0}


def evaluations(settings: SamplerSettings) -> int:
    """Return how many predictions an image takes, over all steps; those computed as one batch count one each."""
    plain = min(max(settings.guidance_start, 0), settings.num_inference_steps)
    guided = len(guidance_factors(settings.image_guidance, settings.text_guidance))
    return plain + (settings.num_inference_steps - plain) * guided


@torch.no_grad()
def sample(
    architecture: Architecture,
    condition: Condition,
    null_text: TextEmbeddings,
    noise: Float[Tensor, "b c h w"],
    settings: SamplerSettings,
    shift: Shift,
    on_step: Callable[[int, Tensor], Tensor | None] | None = None,
    reference_strength: Callable[[int], float] | None = None,
) -> Float[Tensor, "b c h w"]:
    """Return the clean canvas that the model generates from `noise` under `condition`.

    Args:
        null_text: embeddings of "no text" (batch 1 or that of `noise`), read only under text guidance.
        shift: timestep shift, evaluated at the full canvas's number of image tokens.
        on_step: called after each step with its index and the canvas; a canvas that it returns replaces that one.
        reference_strength: of each step by its index. At 1 the reference inputs are as given, at 0 they are the null
            reference, between and beyond they are on the straight line through both. Always 1 if None.
    """
    batch = noise.shape[0]
    image_tokens = architecture.image_tokens(noise)
    times = sampling_times(settings.num_inference_steps, shift(image_tokens))
    batched = settings.batch_passes
    if batched is None:
        batched = batch * (image_tokens + condition.text.sequence.shape[1]) <= BATCHED_TOKENS
    # Texts of unequal length cannot be in one batch.
    batched = batched and null_text.sequence.shape[1] == condition.text.sequence.shape[1]
    prepared: dict[tuple[float, tuple[str, ...]], tuple[Condition, State]] = {}
    canvas = noise
    for index in range(settings.num_inference_steps):
        guided = index >= settings.guidance_start
        factors = guidance_factors(settings.image_guidance, settings.text_guidance) if guided else {"full": 1.0}
        strength = 1.0 if reference_strength is None else float(reference_strength(index))
        # FLUX's pipelines go by thousandths, and the embedding sees the last bit of it.
        timestep = (times[index] * 1000 / 1000).to(canvas.device).expand(batch)
        predicted = torch.zeros_like(canvas, dtype=torch.float32)
        for names in [tuple(factors)] if batched else [(name,) for name in factors]:
            if (strength, names) not in prepared:
                joined = _join(_conditions(architecture, condition, null_text, batch, strength, names))
                prepared[strength, names] = joined, architecture.prepare(joined)
            joined, state = prepared[strength, names]
            count = len(names)
            together = architecture(canvas.repeat(count, 1, 1, 1), timestep.repeat(count), joined, state)
            for name, each in zip(names, together.chunk(count), strict=True):
                predicted += factors[name] * each.float()
        canvas = euler_step(canvas, predicted, float(times[index]), float(times[index + 1]))
        if on_step is not None:
            replaced = on_step(index, canvas)
            canvas = canvas if replaced is None else replaced
    return canvas


def _conditions(
    architecture: Architecture,
    condition: Condition,
    null_text: TextEmbeddings,
    batch: int,
    strength: float,
    names: tuple[str, ...],
) -> list[Condition]:
    null = architecture.null_reference(condition.reference)
    if strength != 1:
        reference = {name: null[name] + strength * (value - null[name]) for name, value in condition.reference.items()}
        condition = replace(condition, reference=reference)
    no_text = condition.with_text(
        TextEmbeddings(null_text.sequence.expand(batch, -1, -1), null_text.pooled.expand(batch, -1))
    )
    passes = {"null": replace(no_text, reference=null), "reference": no_text, "full": condition}
    return [passes[name] for name in names]


def _join(conditions: list[Condition]) -> Condition:
    if len(conditions) == 1:
        return conditions[0]
    text = TextEmbeddings(
        torch.cat([each.text.sequence for each in conditions]), torch.cat([each.text.pooled for each in conditions])
    )
    names = conditions[0].reference
    reference = {name: torch.cat([each.reference[name] for each in conditions]) for name in names}
    return Condition(text, torch.cat([each.guidance for each in conditions]), reference)
