"""Rectified flow as FLUX uses it: interpolant, velocity, timestep densities, resolution shift, Euler step.

Pure mathematics on tensors. Time runs from 0 (clean) to 1 (noise). Sources: Liu et al., arXiv 2209.03003; Esser et al.,
arXiv 2403.03206 (densities, Sec. 3.1; shift, Sec. 5.3.2).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor


def interpolate(
    clean: Float[Tensor, "b c h w"], noise: Float[Tensor, "b c h w"], timestep: Float[Tensor, " b"]
) -> Float[Tensor, "b c h w"]:
    """Return the noisy canvas at `timestep`. Eq. 13 of arXiv 2403.03206 (rectified flow)."""
    t = timestep[:, None, None, None].to(clean.dtype)
    return (1 - t) * clean + t * noise


def velocity(clean: Float[Tensor, "b c h w"], noise: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
    """Return the target of the prediction, the interpolant's derivative in time."""
    return noise - clean


def euler_step(
    noisy: Float[Tensor, "b c h w"], predicted: Float[Tensor, "b c h w"], timestep: float, following: float
) -> Float[Tensor, "b c h w"]:
    """Move from `timestep` to the `following` (smaller) one along the predicted velocity, in float32."""
    return (noisy.float() + (following - timestep) * predicted.float()).to(noisy.dtype)


def shift_time(timestep: Float[Tensor, "..."], mu: float) -> Float[Tensor, "..."]:
    """Shift times towards noise by exp(mu); 0 and 1 stay. Eq. 23 of arXiv 2403.03206 in FLUX's parametrisation."""
    if mu == 0:
        return timestep
    factor = math.exp(mu)
    return factor * timestep / (1 + (factor - 1) * timestep)


# --- Timestep densities: from a uniform draw in [0, 1) to a timestep, so that any keyed generator can feed them.


@dataclass(frozen=True)
class Uniform:
    """Every timestep alike."""

    def __call__(self, uniform: Float[Tensor, " b"]) -> Float[Tensor, " b"]:
        return uniform


@dataclass(frozen=True)
class LogitNormal:
    """Sigmoid of a normal variable with this mean and deviation. Eq. 19 of arXiv 2403.03206."""

    mean: float = 0.0
    deviation: float = 1.0

    def __post_init__(self) -> None:
        if self.deviation <= 0:
            raise ValueError(f"density.deviation={self.deviation} must be > 0; the paper of SD3 uses 1.0")

    def __call__(self, uniform: Float[Tensor, " b"]) -> Float[Tensor, " b"]:
        normal = torch.special.ndtri(uniform.double().clamp(1e-7, 1 - 1e-7))
        return torch.sigmoid(self.mean + self.deviation * normal).to(uniform.dtype)


@dataclass(frozen=True)
class Mode:
    """Mode sampling with heavy tails; `scale` in [-1, 2/(pi - 2)]. Eq. 20 of arXiv 2403.03206."""

    scale: float = 1.29

    def __post_init__(self) -> None:
        limit = 2 / (math.pi - 2)
        if not -1 <= self.scale <= limit:
            raise ValueError(f"density.scale={self.scale} must be in [-1, {limit:.3f}] for the map to be monotonic")

    def __call__(self, uniform: Float[Tensor, " b"]) -> Float[Tensor, " b"]:
        bend = torch.cos(math.pi / 2 * uniform) ** 2 - 1 + uniform
        return (1 - uniform - self.scale * bend).clamp(0, 1)


# --- Shifts: from the number of image tokens of the whole canvas to mu.


@dataclass(frozen=True)
class NoShift:
    """Timesteps as drawn."""

    def __call__(self, tokens: int) -> float:
        return 0.0


@dataclass(frozen=True)
class FixedShift:
    """One factor (exp(mu)) at every resolution; 3.0 is SD3's."""

    factor: float = 3.0

    def __post_init__(self) -> None:
        if self.factor <= 0:
            raise ValueError(f"shift.factor={self.factor} must be > 0; 1.0 means no shift")

    def __call__(self, tokens: int) -> float:
        return math.log(self.factor)


@dataclass(frozen=True)
class ResolutionShift:
    """FLUX's: mu linear in the number of image tokens, through (base_tokens, base_mu) and (max_tokens, max_mu)."""

    base_tokens: int = 256
    max_tokens: int = 4096
    base_mu: float = 0.5
    max_mu: float = 1.15

    def __call__(self, tokens: int) -> float:
        slope = (self.max_mu - self.base_mu) / (self.max_tokens - self.base_tokens)
        return self.base_mu + slope * (tokens - self.base_tokens)


def sampling_times(steps: int, mu: float) -> Float[Tensor, " n"]:
    """Return `steps` + 1 times from 1 to 0 for Euler sampling: linspace(1, 1/steps), shifted by mu, then 0 (FLUX).

    Rounded where diffusers' scheduler rounds, so that they are its `sigmas` bit for bit.
    """
    if steps < 1:
        raise ValueError(f"num_inference_steps={steps} must be at least 1")
    even = np.linspace(1.0, 1.0 / steps, steps).astype(np.float32)
    times = torch.from_numpy(math.exp(mu) / (math.exp(mu) + (1 / even - 1) ** 1.0))
    return torch.cat([times, times.new_zeros(1)])
