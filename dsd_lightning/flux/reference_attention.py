"""Hands a reference's keys and values from one pass of the transformer to another, by an attention processor."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from diffusers import FluxTransformer2DModel
from diffusers.models.attention_dispatch import dispatch_attention_fn
from diffusers.models.embeddings import apply_rotary_emb
from diffusers.models.transformers.transformer_flux import FluxAttention
from torch import Tensor

KeysAndValues = Mapping[int, tuple[Tensor, Tensor]]
"""Keys (rotated to their positions) and values, each [batch, tokens, heads, head_dim], by attention module."""


class ReferenceAttention:
    """Attention processor that records a pass's keys and values, or lets the pass attend to recorded ones as well.

    Does what diffusers' `FluxAttnProcessor` does (to the bit, where it is given neither), and takes two arguments more,
    by way of the transformer's `joint_attention_kwargs`:

    - `record`: a dict that receives the keys and values of this pass;
    - `kept`: recorded keys and values; they are appended to this pass's own.

    Args:
        index: of the attention module; key of what is recorded.
        like: the module's processor so far, whose attention kernel is taken over.
    """

    def __init__(self, index: int, like: object) -> None:
        self.index = index
        # diffusers' `set_attention_backend` looks for these two by name.
        self._attention_backend = getattr(like, "_attention_backend", None)
        self._parallel_config = getattr(like, "_parallel_config", None)

    def __call__(
        self,
        attn: FluxAttention,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        image_rotary_emb: tuple[Tensor, Tensor] | None = None,
        record: dict[int, tuple[Tensor, Tensor]] | None = None,
        kept: KeysAndValues | None = None,
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Return the attention's output; of the image and of the text where both streams are given."""
        heads = (-1, attn.head_dim)
        query = attn.norm_q(attn.to_q(hidden_states).unflatten(-1, heads))
        key = attn.norm_k(attn.to_k(hidden_states).unflatten(-1, heads))
        value = attn.to_v(hidden_states).unflatten(-1, heads)
        if encoder_hidden_states is not None:
            text_query = attn.norm_added_q(attn.add_q_proj(encoder_hidden_states).unflatten(-1, heads))
            text_key = attn.norm_added_k(attn.add_k_proj(encoder_hidden_states).unflatten(-1, heads))
            text_value = attn.add_v_proj(encoder_hidden_states).unflatten(-1, heads)
            query, key, value = (
                torch.cat(both, dim=1) for both in ((text_query, query), (text_key, key), (text_value, value))
            )
        query = apply_rotary_emb(query, image_rotary_emb, sequence_dim=1)
        key = apply_rotary_emb(key, image_rotary_emb, sequence_dim=1)
        if record is not None:
            # A block that is recomputed in the backward pass comes by here once more.
            record.setdefault(self.index, (key, value))
        if kept is not None:
            kept_key, kept_value = kept[self.index]
            key, value = torch.cat([key, kept_key], dim=1), torch.cat([value, kept_value], dim=1)
        output = dispatch_attention_fn(
            query,
            key,
            value,
            attn_mask=attention_mask,
            backend=self._attention_backend,
            parallel_config=self._parallel_config,
        )
        output = output.flatten(2, 3).to(query.dtype)
        if encoder_hidden_states is None:
            return output
        text, image = output.split_with_sizes(
            [encoder_hidden_states.shape[1], output.shape[1] - encoder_hidden_states.shape[1]], dim=1
        )
        image = attn.to_out[1](attn.to_out[0](image.contiguous()))
        return image, attn.to_add_out(text.contiguous())


def attach_reference_attention(transformer: FluxTransformer2DModel) -> None:
    """Put a `ReferenceAttention` into every attention module of `transformer`, in the order of its blocks."""
    blocks = [*transformer.transformer_blocks, *transformer.single_transformer_blocks]
    for index, block in enumerate(blocks):
        block.attn.set_processor(ReferenceAttention(index, like=block.attn.processor))
