"""The training objective: the velocity error of every frame, each with its own weight, and of subjects with theirs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from dsd_lightning.architectures.base import Architecture
from dsd_lightning.pairs import TARGET, Condition, Encoded
from dsd_lightning.rectified_flow import interpolate


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
    target_weights: Float[Tensor, "b 1 h n"] | None = None,
) -> FrameLosses:
    """Return the conditional flow matching loss of a batch. Eq. 14 of arXiv 2403.03206, a frame at a time.

    The total is the mean of the frames' errors under `frame_weights`, over the frames that the architecture has: with
    one frame it is that frame's error, whatever its weight. With `target_weights`, the target's error is the mean over
    its latent pixels under these weights, each sample's own: a small subject counts as much as a large one.
    """
    noisy = interpolate(encoded.clean, noise, timestep)
    predicted = architecture(noisy, timestep, condition, architecture.prepare(condition))
    wanted = architecture.target_velocity(encoded.clean, noise, noisy, timestep, condition)
    error = (predicted.float() - wanted.float()).square()
    errors = architecture.split(error)
    frames = {name: frame.mean(dim=(1, 2, 3)) for name, frame in errors.items()}
    if target_weights is not None:
        by_place = errors[TARGET].mean(dim=1, keepdim=True)
        frames[TARGET] = (target_weights * by_place).sum(dim=(1, 2, 3)) / target_weights.sum(dim=(1, 2, 3))
    weights = {name: float(frame_weights.get(name, 0.0)) for name in frames}
    total = sum((weights[name] * frames[name].mean() for name in frames), start=error.new_zeros(()))
    return FrameLosses(total / sum(weights.values()), frames)


def weights_of_mask(
    mask: Float[Tensor, "b 1 m n"], size: tuple[int, int], background_weight: float
) -> Float[Tensor, "b 1 h w"]:
    """Return the weight of each latent pixel of the target: 1 where its mask is 1, `background_weight` where it is 0.

    Args:
        mask: where targets show their subjects, in [0, 1], in pixels or latents.
        size: (height, width) of a frame's latents; a latent pixel takes the mean of the mask's pixels in it.
        background_weight: in (0, 1].
    """
    share = F.adaptive_avg_pool2d(mask.float(), size)
    return background_weight + (1.0 - background_weight) * share
