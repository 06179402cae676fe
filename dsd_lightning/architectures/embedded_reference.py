"""Shared by architectures that add the reference token by token at the image embedder."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from diffusers import FluxTransformer2DModel
from jaxtyping import Float
from torch import Tensor, nn

from dsd_lightning.architectures.base import Architecture
from dsd_lightning.flux.lora import Lora
from dsd_lightning.flux.reference_embedder import ReferenceEmbedder
from dsd_lightning.pairs import Condition


class EmbeddedReference(Architecture):
    """The image embedder gets a second linear layer, for the reference's tokens, whose weights start at zero."""

    def __init__(self, transformer: FluxTransformer2DModel, lora: Lora | None = None) -> None:
        super().__init__(transformer)
        transformer.x_embedder = ReferenceEmbedder(transformer.x_embedder)
        self._finish(lora)

    def trained_whole(self) -> Iterable[nn.Module]:
        """Yield the reference's linear layer."""
        yield self.transformer.x_embedder.c_embedder

    def predict_tokens(
        self,
        noisy: Float[Tensor, "b n d"],
        reference: Float[Tensor, "b n d"],
        timestep: Float[Tensor, " b"],
        condition: Condition,
        image_ids: Float[Tensor, "n 3"],
    ) -> Float[Tensor, "b n d"]:
        """Return the velocity of packed tokens; `condition.reference` is not read."""
        both = torch.cat([noisy, reference.to(noisy.dtype)], dim=-1)
        return self._transform(both, timestep, condition, image_ids)
