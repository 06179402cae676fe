"""The reference's latents join the noisy ones along channels (the "concatenation" of the paper's Figure 6)."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from diffusers import FluxTransformer2DModel
from jaxtyping import Float
from torch import Tensor, nn

from dsd_lightning.architectures.base import State
from dsd_lightning.architectures.latent_reference import LatentReference
from dsd_lightning.flux import tokens
from dsd_lightning.flux.lora import Lora
from dsd_lightning.flux.reference_embedder import ReferenceEmbedder
from dsd_lightning.pairs import Condition


class Concat(LatentReference):
    """The image embedder gets new input channels for the reference, of weights that start at zero.

    Each token sees the reference at its own place only, before the first block; as InstructPix2Pix (arXiv 2211.09800,
    Sec. 3.2) and FLUX's fill and depth models do.
    """

    name = "concat"

    def __init__(self, transformer: FluxTransformer2DModel, lora: Lora | None = None) -> None:
        super().__init__(transformer)
        transformer.x_embedder = ReferenceEmbedder(transformer.x_embedder)
        self._finish(lora)

    def trained_whole(self) -> Iterable[nn.Module]:
        """Yield the new input channels' layer."""
        yield self.transformer.x_embedder.c_embedder

    def forward(
        self,
        noisy: Float[Tensor, "b c h w"],
        timestep: Float[Tensor, " b"],
        condition: Condition,
        state: State | None = None,
    ) -> Float[Tensor, "b c h w"]:
        """Return the predicted velocity of the target; the reference must be of its size."""
        height, width = noisy.shape[-2:]
        ids = tokens.image_ids(height, width, device=noisy.device)
        reference = tokens.pack(condition.reference["latents"]).to(noisy.dtype)
        both = torch.cat([tokens.pack(noisy), reference], dim=-1)
        return tokens.unpack(self._transform(both, timestep, condition, ids), height, width)
