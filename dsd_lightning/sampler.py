"""From a condition and noise to latents: Euler steps along the velocity, with text and image guidance.

True guidance combines up to three predictions (official code, `pipeline.py`):

    v = u + i (u_img - u) + t (c - u_img)  =  (1 - i) u + (i - t) u_img + t c

with u: no text and no reference; u_img: no text, reference; c: text and reference. Only predictions whose factor is not
zero are computed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from itertools import product

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

    Under a step cache (`Architecture.use_step_cache`) each kind of prediction reuses its own earlier ones; where the cache
    decides by content, it does so for each image of the batch, so that an image does not depend on its neighbours.

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
    null_text = TextEmbeddings(null_text.sequence.expand(batch, -1, -1), null_text.pooled.expand(batch, -1))
    predictor = _Predictor(architecture, condition, null_text, settings.batch_passes, image_tokens)
    canvas = noise
    with architecture.one_call():
        for index in range(settings.num_inference_steps):
            guided = index >= settings.guidance_start
            factors = guidance_factors(settings.image_guidance, settings.text_guidance) if guided else {"full": 1.0}
            strength = 1.0 if reference_strength is None else float(reference_strength(index))
            # FLUX's pipelines go by thousandths, and the embedding sees the last bit of it.
            timestep = (times[index] * 1000 / 1000).to(canvas.device).expand(batch)
            predicted = predictor.predict(canvas, timestep, factors, strength)
            canvas = euler_step(canvas, predicted, float(times[index]), float(times[index + 1]))
            if on_step is not None:
                replaced = on_step(index, canvas)
                canvas = canvas if replaced is None else replaced
    return canvas


class _Predictor:
    """Computes a step's passes, and keeps what they have in common with those of other steps.

    Args:
        null_text: of the condition's batch.
        batch_passes: see `SamplerSettings`.
        image_tokens: of the canvas.
    """

    def __init__(
        self,
        architecture: Architecture,
        condition: Condition,
        null_text: TextEmbeddings,
        batch_passes: bool | None,
        image_tokens: int,
    ) -> None:
        self.architecture, self.condition, self.null_text = architecture, condition, null_text
        batch, text_tokens = null_text.sequence.shape[0], condition.text.sequence.shape[1]
        cache = architecture.step_cache
        one_by_one = cache is not None and cache.decides_by_content
        self.parts = [slice(row, row + 1) for row in range(batch)] if one_by_one else [slice(0, batch)]
        if batch_passes is None:
            batch_passes = batch // len(self.parts) * (image_tokens + text_tokens) <= BATCHED_TOKENS
        # Texts of unequal length cannot be in one batch.
        self.batched = batch_passes and null_text.sequence.shape[1] == text_tokens
        self._prepared: dict[tuple[int, float, tuple[str, ...]], tuple[Condition, State]] = {}

    def predict(
        self,
        canvas: Float[Tensor, "b c h w"],
        timestep: Float[Tensor, " b"],
        factors: Mapping[str, float],
        strength: float,
    ) -> Float[Tensor, "b c h w"]:
        """Return the sum of the predictions that `factors` names, in float32; `strength` is the reference's."""
        predicted = torch.zeros_like(canvas, dtype=torch.float32)
        passes = [tuple(factors)] if self.batched else [(name,) for name in factors]
        for rows, names in product(self.parts, passes):
            key, count = (rows.start, strength, names), len(names)
            if key not in self._prepared:
                given = self.condition.rows(rows), self.null_text.rows(rows)
                joined = _join(_conditions(self.architecture, *given, strength, names))
                with self.architecture.one_pass("prepare", *key):
                    self._prepared[key] = joined, self.architecture.prepare(joined)
            joined, state = self._prepared[key]
            with self.architecture.one_pass(*key):
                together = self.architecture(
                    canvas[rows].repeat(count, 1, 1, 1), timestep[rows].repeat(count), joined, state
                )
            for name, each in zip(names, together.chunk(count), strict=True):
                predicted[rows] += factors[name] * each.float()
        return predicted


def _conditions(
    architecture: Architecture,
    condition: Condition,
    null_text: TextEmbeddings,
    strength: float,
    names: tuple[str, ...],
) -> list[Condition]:
    null = architecture.null_reference(condition.reference)
    if strength != 1:
        reference = {name: null[name] + strength * (value - null[name]) for name, value in condition.reference.items()}
        condition = replace(condition, reference=reference)
    no_text = condition.with_text(null_text)
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
