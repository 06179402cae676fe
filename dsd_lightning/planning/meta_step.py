"""Runs a training step on tensors that have shapes and no memory, to count what it costs."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext

import torch
from jaxtyping import Float
from torch import Tensor, nn

from dsd_lightning.architectures.base import Architecture
from dsd_lightning.flux.codec import Codec
from dsd_lightning.flux.image_encoder import ImageEncoder, Preprocessing
from dsd_lightning.objective import frame_losses
from dsd_lightning.pairs import Condition, TextEmbeddings
from dsd_lightning.planning.counters import Cost, cost_of, trace, without_memory

BATCH = 10_007
"""Pairs of the step that is traced: a prime, which divides the bytes of what grows with the batch and of nothing else. Tensors
take no memory here, so that it may be large."""


class _Shapes(Codec):
    """In place of cached encodings: latents with a shape and no values."""

    def __init__(self, channels: int, downsampling: int, dtype: torch.dtype) -> None:
        nn.Module.__init__(self)
        self._channels, self._downsampling, self._dtype = channels, downsampling, dtype

    @property
    def downsampling(self) -> int:
        return self._downsampling

    @property
    def channels(self) -> int:
        return self._channels

    def encode(self, pixels: Float[Tensor, "b 3 h w"], *, sample: object = None) -> Float[Tensor, "b c lh lw"]:
        batch, _, height, width = pixels.shape
        shape = (batch, self.channels, height // self.downsampling, width // self.downsampling)
        return torch.empty(shape, dtype=self._dtype, device=pixels.device)


def step_cost(
    architecture: Architecture,
    frame_size: tuple[int, int],
    text_tokens: int,
    frame_weights: Mapping[str, float],
    *,
    pixels_per_token: int = 16,
    autocast: bool = False,
) -> Cost:
    """Return what a step costs with this architecture, encodings and embeddings being cached.

    Args:
        architecture: on meta, with its checkpointed blocks chosen; unusable afterwards.
        frame_size: (height, width), pixels.
        text_tokens: T5 tokens.
        frame_weights: weight of each frame's error.
        pixels_per_token: side of the square of pixels that is one image token.
        autocast: whether operations run in bfloat16 whatever their weights are (`trainer.precision=bf16-mixed`).
    """
    config = architecture.transformer.config
    for module in architecture.modules():
        if isinstance(module, ImageEncoder) and module.preprocessing is None:
            side = int(module.tower.config.image_size)
            module.preprocessing = Preprocessing((side, side), None, (0.0,) * 3, (1.0,) * 3, "bilinear")

    with without_memory():
        architecture.to_empty(device="cpu")
        dtype = architecture.transformer.context_embedder.weight.dtype
        # A token is a square of 2 x 2 latents.
        codec = _Shapes(int(config.in_channels) // 4, pixels_per_token // 2, dtype)
        images = torch.empty(BATCH, 3, *frame_size)
        with torch.no_grad():
            encoded = architecture.encode(images, images, codec)
        text = TextEmbeddings(
            torch.empty(BATCH, text_tokens, int(config.joint_attention_dim), dtype=dtype),
            torch.empty(BATCH, int(config.pooled_projection_dim), dtype=dtype),
        )
        condition = Condition(text, torch.ones(BATCH), encoded.reference)
        noise, timestep = torch.empty_like(encoded.clean), torch.empty(BATCH)

        def step() -> Tensor:
            # As in training, no copy of a weight outlives its use (`compute.autocast`).
            with torch.autocast("cpu", torch.bfloat16, cache_enabled=False) if autocast else nullcontext():
                return frame_losses(architecture, encoded, condition, noise, timestep, frame_weights).total

        traced = trace([*architecture.parameters(), *architecture.buffers()], step)
    return cost_of(traced, BATCH)
