"""Shared by architectures that denoise the target alone and read the reference's latents."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from jaxtyping import Float
from torch import Tensor

from dsd_lightning.architectures.base import OneFrame
from dsd_lightning.flux.codec import Codec


class LatentReference(OneFrame):
    """One frame, and `condition.reference["latents"]`: the reference as the VAE encodes it."""

    def encode_reference(self, reference: Float[Tensor, "b 3 h w"] | None, codec: Codec) -> Mapping[str, Tensor]:
        """Return the reference's latents."""
        return {"latents": codec.encode(self.required(reference))}

    def encoding_key(self, codec: Codec) -> str:
        """Return the key that all of these architectures have in common: they share a cache."""
        return f"latent_reference-{codec.fingerprint()}"

    def null_reference(self, reference: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """Return zero latents (not an encoded black image), as `parallel` does."""
        return {name: torch.zeros_like(value) for name, value in reference.items()}
