"""The paper's architecture: reference and target are two frames of one canvas, denoised together (Sec. 3.2).

Computed exactly as the official inference code does: one wide canvas, encoded as one image; the clean reference beside black,
encoded as one image too, enters through a linear layer `c_embedder` whose output is added to that of `x_embedder`;
position ids run continuously over both frames.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from jaxtyping import Float
from torch import Tensor

from dsd_lightning.architectures.base import State
from dsd_lightning.architectures.embedded_reference import EmbeddedReference
from dsd_lightning.flux import tokens
from dsd_lightning.flux.codec import Codec
from dsd_lightning.pairs import REFERENCE, TARGET, Condition

BLACK = -1.0
"""Pixel value of the condition canvas's empty half; grey instead shifts its latents by 4.5 (official weights)."""


class Parallel(EmbeddedReference):
    """Two frames side by side, the left one reconstruction the reference, the right one drawing the target."""

    name = "parallel"
    frames = (REFERENCE, TARGET)
    stock_pipeline = "FluxControlPipeline"  # its control image is the canvas `reference | black`

    def encode_clean(
        self, reference: Float[Tensor, "b 3 h w"] | None, target: Float[Tensor, "b 3 h w"], codec: Codec
    ) -> Float[Tensor, "b c lh lw"]:
        """Return the latents of `reference | target`, encoded as one image."""
        return codec.encode(torch.cat([self.required(reference), target], dim=-1))

    def encode_reference(self, reference: Float[Tensor, "b 3 h w"] | None, codec: Codec) -> Mapping[str, Tensor]:
        """Return the latents of `reference | black`, encoded as one image."""
        reference = self.required(reference)
        canvas = torch.cat([reference, torch.full_like(reference, BLACK)], dim=-1)
        return {"canvas": codec.encode(canvas)}

    def join(self, frames: Mapping[str, Float[Tensor, "b c h w"]]) -> Float[Tensor, "b c ch cw"]:
        """Return the frames side by side."""
        return torch.cat([frames[REFERENCE], frames[TARGET]], dim=-1)

    def split(self, canvas: Float[Tensor, "b c h w"]) -> dict[str, Float[Tensor, "b c fh fw"]]:
        """Return the left half as the reference and the right half as the target."""
        reference, target = canvas.chunk(2, dim=-1)
        return {REFERENCE: reference, TARGET: target}

    def null_reference(self, reference: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """Return zero latents (not an encoded black image), as the official guidance does."""
        return {name: torch.zeros_like(value) for name, value in reference.items()}

    def _predict(
        self,
        packed: Float[Tensor, "b n d"],
        image_ids: Float[Tensor, "n 3"],
        timestep: Float[Tensor, " b"],
        condition: Condition,
        state: State | None,
    ) -> Float[Tensor, "b n d"]:
        """Run the base on both frames, each token with the condition canvas's at its place."""
        return self.predict_tokens(packed, tokens.pack(condition.reference["canvas"]), timestep, condition, image_ids)
