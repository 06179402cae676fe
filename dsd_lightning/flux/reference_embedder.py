"""Adds embedded reference tokens to the noisy ones in the transformer's image embedder."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn


class ReferenceEmbedder(nn.Module):
    """Embeds noisy tokens and reference tokens and adds them; replaces the transformer's `x_embedder`.

    Takes both along the last axis, `[noisy | reference]`, so that the transformer itself stays diffusers' own: one linear
    layer over the joined channels, in two parts. The reference's part (`c_embedder` in the official code) starts at zero:
    at first the base is unchanged. It is float32 because it is trained.
    """

    def __init__(self, x_embedder: nn.Linear) -> None:
        super().__init__()
        self.x_embedder = x_embedder
        self.c_embedder = nn.Linear(
            x_embedder.in_features, x_embedder.out_features, device=x_embedder.weight.device, dtype=torch.float32
        )
        nn.init.zeros_(self.c_embedder.weight)
        nn.init.zeros_(self.c_embedder.bias)

    def forward(self, both: Float[Tensor, "b n d"]) -> Float[Tensor, "b n e"]:
        """Return `x_embedder(noisy) + c_embedder(reference)` in the base's dtype."""
        noisy, reference = both.chunk(2, dim=-1)
        embedded = self.x_embedder(noisy)
        added = self.c_embedder(reference.to(self.c_embedder.weight.dtype))
        return embedded + added.to(embedded.dtype)
