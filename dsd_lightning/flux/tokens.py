"""Latents to FLUX's image tokens and back, and the position ids of tokens.

Layout as in black-forest-labs/flux `sampling.py` and diffusers' `FluxPipeline`: 2 x 2 latents make a token.
"""

from __future__ import annotations

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor


def pack(latents: Float[Tensor, "b c h w"]) -> Float[Tensor, "b n d"]:
    """Return image tokens [b, h/2 * w/2, 4c], row by row.

    Raises:
        ValueError: if height or width is odd.
    """
    height, width = latents.shape[-2:]
    if height % 2 or width % 2:
        raise ValueError(
            f"latents of {height} x {width} cannot be packed 2 x 2; choose images whose sides are multiples of "
            "twice the VAE's downsampling (FLUX.1: 16 pixels)"
        )
    return rearrange(latents, "b c (h p) (w q) -> b (h w) (c p q)", p=2, q=2)


def unpack(tokens: Float[Tensor, "b n d"], height: int, width: int) -> Float[Tensor, "b c h w"]:
    """Return latents [b, d/4, height, width] from their tokens; sizes are those of the latents."""
    return rearrange(tokens, "b (h w) (c p q) -> b c (h p) (w q)", h=height // 2, w=width // 2, p=2, q=2)


def image_ids(height: int, width: int, *, device: torch.device) -> Float[Tensor, "n 3"]:
    """Return the ids [0, row, column] of the tokens of latents of `height` x `width`: one continuous grid."""
    rows = torch.arange(height // 2, device=device, dtype=torch.float32)
    columns = torch.arange(width // 2, device=device, dtype=torch.float32)
    row, column = torch.meshgrid(rows, columns, indexing="ij")
    return torch.stack([torch.zeros_like(row), row, column], dim=-1).reshape(-1, 3)


def text_ids(length: int, *, device: torch.device) -> Float[Tensor, "n 3"]:
    """Return the ids of text tokens: all zero."""
    return torch.zeros(length, 3, device=device, dtype=torch.float32)
