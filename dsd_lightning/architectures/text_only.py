"""No reference at all: the plain text-to-image model. The floor of an ablation; pretraining and teacher tuning use it."""

from __future__ import annotations

from collections.abc import Mapping

from diffusers import FluxTransformer2DModel
from jaxtyping import Float
from torch import Tensor

from dsd_lightning.architectures.base import OneFrame, State
from dsd_lightning.flux.codec import Codec
from dsd_lightning.flux.lora import Lora
from dsd_lightning.pairs import Condition


class TextOnly(OneFrame):
    """The base as it is, trained in full (`train_base`) or through LoRA factors."""

    name = "text_only"
    stock_pipeline = "FluxPipeline"

    def __init__(self, transformer: FluxTransformer2DModel, lora: Lora | None = None, train_base: bool = False) -> None:
        super().__init__(transformer, train_base)
        self._finish(lora)

    def encode_reference(self, reference: Float[Tensor, "b 3 h w"] | None, codec: Codec) -> Mapping[str, Tensor]:
        """Return nothing: no part of the model looks at the reference."""
        return {}

    def null_reference(self, reference: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """Return nothing."""
        return {}

    def _predict(
        self,
        packed: Float[Tensor, "b n d"],
        image_ids: Float[Tensor, "n 3"],
        timestep: Float[Tensor, " b"],
        condition: Condition,
        state: State | None,
    ) -> Float[Tensor, "b n d"]:
        """Return what the base predicts."""
        return self._transform(packed, timestep, condition, image_ids)
