"""Multiplications of a pass through FLUX, and the bytes kept for the backward pass, from shapes alone.

Pure arithmetic: nothing here needs torch, a GPU or weights. Layers are known by diffusers' names.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

FLOAT32 = 4
"""Bytes of a float32 value: of factors, and of what they are fed with."""


@dataclass(frozen=True)
class Sizes:
    """What a sample consists of.

    Attributes:
        frame_tokens: image tokens of one frame (FLUX: one for 16 x 16 pixels).
        text_tokens: T5 tokens.
        value_bytes: bytes of an activation: 2 under a bfloat16 base, 4 under a float32 one.
        fused_attention: the kernel keeps no matrix of weights (flash, cuDNN, and PyTorch's own choice).
    """

    frame_tokens: int
    text_tokens: int
    value_bytes: int = 2
    fused_attention: bool = True


@dataclass(frozen=True)
class Linear:
    """A linear layer: its name in the transformer, its shape, and the rank of its factors (0: none)."""

    name: str
    inputs: int
    outputs: int
    rank: int = 0


@dataclass(frozen=True)
class Cost:
    """What one sample costs in training.

    Attributes:
        forward: floating-point operations of a forward pass; a multiply-add counts two.
        training: of forward and backward together, without recomputation. Frozen weights have no gradient, but their
            inputs do; attention's backward pass takes twice its forward pass.
        activations: bytes that wait for the backward pass.
    """

    forward: float
    training: float
    activations: float


_TEXT = re.compile(r"transformer_blocks\.\d+\.(attn\.(add_[qkv]_proj|to_add_out)|ff_context\..*)|context_embedder")
_ONCE = re.compile(r".*norm\w*\.linear|time_text_embed\..*")
_SINGLE = re.compile(r"single_transformer_blocks\..*")


def tokens_through(name: str, image_tokens: int, text_tokens: int) -> int:
    """Return how many tokens of a sample pass through a layer: 1 for those that see its timestep and pooled text."""
    if _ONCE.fullmatch(name):
        return 1
    if _SINGLE.fullmatch(name):
        return image_tokens + text_tokens
    return text_tokens if _TEXT.fullmatch(name) else image_tokens


def flux_cost(
    layers: Iterable[Linear],
    *,
    width: int,
    double_blocks: int,
    single_blocks: int,
    heads: int,
    image_tokens: int,
    sizes: Sizes,
    base_is_trained: bool = False,
) -> Cost:
    """Return what a sample of `image_tokens` (all frames) costs.

    The bytes are an estimate: those of the tensors that autograd keeps by the shapes of diffusers' blocks. For a block and
    token they are the layer norms' inputs, queries and keys before their norms, attention's inputs and output, the GELU's
    input, and the inputs of layers that have a gradient of their own. Under a base of fewer bits, peft gives each layer's
    factors a float32 copy of their input instead.

    Args:
        layers: every linear layer of the transformer.
        width: of the transformer (heads x head dimension).
        double_blocks, single_blocks, heads: as the transformer's configuration has them.
        image_tokens: of the whole canvas, reference tokens included where they are in the sequence.
        sizes: of the sample.
        base_is_trained: weights have gradients too.
    """
    linear = factors = kept = 0.0
    copied = 0 if sizes.value_bytes == FLOAT32 else FLOAT32
    has_factors = False
    for layer in layers:
        tokens = tokens_through(layer.name, image_tokens, sizes.text_tokens)
        linear += 2.0 * tokens * layer.inputs * layer.outputs
        if layer.rank:
            has_factors = True
            factors += 2.0 * tokens * layer.rank * (layer.inputs + layer.outputs)
            kept += tokens * (layer.rank * FLOAT32 + layer.inputs * copied)
    total = image_tokens + sizes.text_tokens
    attention = 4.0 * total**2 * width * (double_blocks + single_blocks)
    # In units of `width` a token. Double blocks: two layer norms (2), queries and keys (2), attention's q, k, v and output
    # (4), GELU (4). Single: one layer norm (1), queries and keys (2), attention (4), GELU (4).
    blocks = 12.0 * double_blocks + 11.0 * single_blocks
    if base_is_trained or (has_factors and not copied):
        # Double: what enters attention's and the feed-forward's layers (1 + 1 + 4). Single: the same (1), proj_out's (5).
        blocks += 6.0 * (double_blocks + single_blocks)
    kept += total * width * sizes.value_bytes * blocks
    if not sizes.fused_attention:
        kept += heads * total**2 * sizes.value_bytes * (double_blocks + single_blocks)
    forward = linear + factors + attention
    backward = linear * (2 if base_is_trained else 1) + 2 * factors + 2 * attention
    return Cost(forward, forward + backward, kept)
