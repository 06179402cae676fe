"""The training objective: the velocity error of every frame, each with its own weight."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from dsd_lightning.architectures.base import Architecture
from dsd_lightning.pairs import Condition, Encoded
from dsd_lightning.rectified_flow import interpolate, velocity


@dataclass(frozen=True)
class FrameLosses:
    """The weighted loss, and each frame's mean squared velocity error a sample."""

    total: Float[Tensor, ""]
    frames: Mapping[str, Float[Tensor, " b"]]


def frame_losses(
    architecture: Architecture,
    encoded: Encoded,
    condition: Condition,
    noise: Float[Tensor, "b c h w"],
    timestep: Float[Tensor, " b"],
    frame_weights: Mapping[str, float],
) -> FrameLosses:
    """Return the conditional flow matching loss of a batch. Eq. 14 of arXiv 2403.03206, a frame at a time.

    The total is the mean of the frames' errors under `frame_weights`, over the frames that the architecture has: with
    one frame it is that frame's error, whatever its weight.
    """
    noisy = interpolate(encoded.clean, noise, timestep)
    predicted = architecture(noisy, timestep, condition, architecture.prepare(condition))
    error = (predicted.float() - velocity(encoded.clean, noise).float()).square()
    frames = {name: frame.mean(dim=(1, 2, 3)) for name, frame in architecture.split(error).items()}
    weights = {name: float(frame_weights.get(name, 0.0)) for name in frames}
    total = sum((weights[name] * frames[name].mean() for name in frames), start=error.new_zeros(()))
    return FrameLosses(total / sum(weights.values()), frames)
