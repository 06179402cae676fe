"""The reference enters as image embeddings that the double blocks attend to beside the text (IP-Adapter).

Decoupled cross-attention as diffusers computes it (`FluxIPAdapterAttnProcessor`): the image queries of every double block
also attend to a few image tokens through keys and values of their own, without position ids; the outcome is added to the
block's output. Single blocks have no such attention. The image is read by a frozen vision tower, whose weights belong to
no checkpoint. Source: arXiv 2308.06721; for FLUX, the XLabs adapter that diffusers loads.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from diffusers import FluxTransformer2DModel
from diffusers.models.embeddings import ImageProjection, IPAdapterPlusImageProjection
from diffusers.models.transformers.transformer_flux import FluxIPAdapterAttnProcessor
from jaxtyping import Float
from torch import Tensor, nn

from dsd_lightning.architectures.base import OneFrame, State
from dsd_lightning.flux.codec import Codec
from dsd_lightning.flux.image_encoder import ImageEncoder
from dsd_lightning.flux.lora import Lora
from dsd_lightning.pairs import Condition

EMBEDDING = "image_embedding"
"""Name of the one reference input: [b, d] pooled, [b, n, d] patch tokens."""


class TrainedLinear(nn.Linear):
    """A float32 linear layer that answers in the dtype of its input, so that a bfloat16 base can attend to it."""

    def forward(self, input: Tensor) -> Tensor:
        """Return `input` transformed."""
        return super().forward(input.to(self.weight.dtype)).to(input.dtype)


class IPAdapter(OneFrame):
    """The base generates the target; its double blocks also attend to image tokens of the reference.

    The tokens are one linear layer of the image's pooled embedding. Trained are that layer and every double block's
    `to_k_ip` and `to_v_ip`; LoRA factors on the base if configured. `to_v_ip` starts at zero (diffusers leaves it random),
    so that at first the prediction is the base's.

    Args:
        transformer: the base.
        image_encoder: frozen; takes the base's dtype.
        num_tokens: image tokens.
        lora: factors on the base, or None.
    """

    name = "ip_adapter"

    def __init__(
        self,
        transformer: FluxTransformer2DModel,
        image_encoder: ImageEncoder,
        num_tokens: int = 4,
        lora: Lora | None = None,
    ) -> None:
        super().__init__(transformer)
        if num_tokens < 1:
            raise ValueError(f"arch.num_tokens={num_tokens} must be at least 1")
        weight = transformer.context_embedder.weight
        self.num_tokens = num_tokens
        self.image_encoder = image_encoder.to(weight.dtype)
        with torch.device(weight.device):
            self.image_projection = self.make_projection(int(transformer.config.joint_attention_dim)).float()
            for block in transformer.transformer_blocks:
                block.attn.set_processor(_processor(transformer, num_tokens, block.attn.processor))
        self._finish(lora)

    def make_projection(self, width: int) -> nn.Module:
        """Return diffusers' layer from the embedding to image tokens [b, num_tokens, width]."""
        return ImageProjection(self.image_encoder.pooled_width, width, self.num_tokens)

    def read(self, pixels: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b ..."]:
        """Return the image embedding of images of any size: here the pooled one [b, d]."""
        return self.image_encoder.pooled(pixels)

    def trained_whole(self) -> Iterable[nn.Module]:
        """Yield the projection and the processors of the double blocks (`add_adapter` has frozen the latter)."""
        yield self.image_projection
        for block in self.transformer.transformer_blocks:
            yield block.attn.processor

    def settings(self) -> Mapping[str, Any]:
        """Return the number of tokens, and the image encoder: trained weights mean nothing to another one."""
        return {"num_tokens": self.num_tokens, "image_encoder.fingerprint": self.image_encoder.fingerprint()}

    def encoding_key(self, codec: Codec) -> str:
        """Return what the encodings depend on: the VAE and the image encoder."""
        return f"{super().encoding_key(codec)}-{self.image_encoder.fingerprint()}"

    def encode_reference(self, reference: Float[Tensor, "b 3 h w"] | None, codec: Codec) -> Mapping[str, Tensor]:
        """Return the image embedding of the reference."""
        return {EMBEDDING: self.read(self.required(reference))}

    def null_reference(self, reference: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """Return a zero embedding, whose projection the blocks attend to, as IP-Adapter's own training drops images."""
        return {name: torch.zeros_like(value) for name, value in reference.items()}

    def prepare(self, condition: Condition) -> State:
        """Return the image tokens, in the base's dtype."""
        weight = self.transformer.context_embedder.weight
        embedding = condition.reference[EMBEDDING].to(weight.device, torch.float32)
        return {"image_tokens": self.image_projection(embedding).to(weight.dtype)}

    def _predict(
        self,
        packed: Float[Tensor, "b n d"],
        image_ids: Float[Tensor, "n 3"],
        timestep: Float[Tensor, " b"],
        condition: Condition,
        state: State | None,
    ) -> Float[Tensor, "b n d"]:
        """Run the base, whose blocks attend to the image tokens too."""
        image_tokens = (state or self.prepare(condition))["image_tokens"]
        attended = {"ip_hidden_states": [image_tokens]}
        return self._transform(packed, timestep, condition, image_ids, joint_attention_kwargs=attended)


class IPAdapterPlus(IPAdapter):
    """Reads the tower's patch tokens instead, resampled to image tokens by learned queries (IP-Adapter Plus).

    Args:
        transformer, image_encoder, num_tokens, lora: as for `IPAdapter`.
        depth: blocks of the resampler, which is as wide as the tower.
        num_heads: its attention heads; None for as many as the tower has.
    """

    name = "ip_adapter_plus"

    def __init__(
        self,
        transformer: FluxTransformer2DModel,
        image_encoder: ImageEncoder,
        num_tokens: int = 16,
        depth: int = 4,
        num_heads: int | None = None,
        lora: Lora | None = None,
    ) -> None:
        self.depth, self.num_heads = depth, num_heads
        super().__init__(transformer, image_encoder, num_tokens, lora)

    def make_projection(self, width: int) -> nn.Module:
        """Return diffusers' resampler.

        Raises:
            ValueError: if the heads do not divide the tower's width, or the depth is less than 1.
        """
        hidden = self.image_encoder.patch_width
        if self.num_heads is None:
            self.num_heads = self.image_encoder.num_heads
        if self.num_heads < 1 or hidden % self.num_heads:
            raise ValueError(
                f"arch.num_heads={self.num_heads} must divide the width of the image encoder's tokens, {hidden}"
            )
        if self.depth < 1:
            raise ValueError(f"arch.depth={self.depth} must be at least 1")
        return IPAdapterPlusImageProjection(
            embed_dims=hidden,
            output_dims=width,
            hidden_dims=hidden,
            depth=self.depth,
            dim_head=hidden // self.num_heads,
            heads=self.num_heads,
            num_queries=self.num_tokens,
        )

    def read(self, pixels: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b ..."]:
        """Return the patch tokens [b, n, d]."""
        return self.image_encoder.patches(pixels)

    def settings(self) -> Mapping[str, Any]:
        """Return those of `IPAdapter` and the resampler's."""
        return {**super().settings(), "depth": self.depth, "num_heads": self.num_heads}


def _processor(transformer: FluxTransformer2DModel, num_tokens: int, replaced: Any) -> FluxIPAdapterAttnProcessor:
    width = int(transformer.config.joint_attention_dim)
    with torch.device("meta"):  # its own layers are replaced
        processor = FluxIPAdapterAttnProcessor(transformer.inner_dim, width, num_tokens=(num_tokens,))
    processor.to_k_ip, processor.to_v_ip = (
        nn.ModuleList([TrainedLinear(width, transformer.inner_dim, dtype=torch.float32)]) for _ in range(2)
    )
    for parameter in processor.to_v_ip.parameters():
        nn.init.zeros_(parameter)
    # What `set_attention_backend` has chosen.
    processor._attention_backend = replaced._attention_backend
    return processor
