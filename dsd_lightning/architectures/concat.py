"""The reference's latents join the noisy ones along channels (the "concatenation" of the paper's Figure 6)."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor

from dsd_lightning.architectures.base import State
from dsd_lightning.architectures.embedded_reference import EmbeddedReference
from dsd_lightning.architectures.latent_reference import LatentReference
from dsd_lightning.flux import tokens
from dsd_lightning.pairs import Condition


class Concat(EmbeddedReference, LatentReference):
    """The image embedder gets new input channels for the reference, of weights that start at zero.

    Each token sees the reference at its own place only, before the first block; as InstructPix2Pix (arXiv 2211.09800,
    Sec. 3.2) and FLUX's fill and depth models do.
    """

    name = "concat"
    stock_pipeline = "FluxControlPipeline"  # its control image is the reference

    def _predict(
        self,
        packed: Float[Tensor, "b n d"],
        image_ids: Float[Tensor, "n 3"],
        timestep: Float[Tensor, " b"],
        condition: Condition,
        state: State | None,
    ) -> Float[Tensor, "b n d"]:
        """Run the base on the target, each token with the reference's at its place; the two must be of one size."""
        return self.predict_tokens(packed, tokens.pack(condition.reference["latents"]), timestep, condition, image_ids)
