"""Converts a user's images, prompts, sizes and generators to the pipeline's batch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from dsd_lightning.images.pixels import to_rgb
from dsd_lightning.pairs import TextEmbeddings

ImageInput = Image.Image | Tensor | np.ndarray
"""A PIL image of any mode and size; pixels [3, h, w] in [-1, 1]; or 8-bit RGB [h, w, 3]."""

Generator = torch.Generator | list[torch.Generator] | None


class InputError(ValueError):
    """Arguments that make no sense; the message names the argument, its value and the remedy."""


def fit(image: Image.Image, height: int, width: int) -> Image.Image:
    """Return the largest middle part of `image` that has the proportions of `height` x `width`, resized to that size.

    As the official code does it: cropped first, at whole pixels rounded down, then resized (bicubic); small images are
    enlarged. To train on, `images.to_pixels` resizes first and never enlarges.
    """
    image = to_rgb(image)
    if image.size == (width, height):
        return image
    across = min(image.width, max(1, image.height * width // height))
    down = min(image.height, max(1, image.width * height // width))
    box = (
        (image.width - across) // 2,
        (image.height - down) // 2,
        (image.width + across) // 2,
        (image.height + down) // 2,
    )
    return image.crop(box).resize((width, height), Image.Resampling.BICUBIC)


def to_pixels(image: ImageInput, height: int, width: int) -> Float[Tensor, "3 h w"]:
    """Return a reference image as pixels in [-1, 1] of `height` x `width`.

    Raises:
        InputError: a tensor of another size or range, or no image at all.
    """
    if isinstance(image, Tensor):
        if image.shape != (3, height, width) or not bool(image.abs().max() <= 1 + 1e-4):
            raise InputError(
                f"image: a tensor must hold pixels [3, {height}, {width}] in [-1, 1], and this one is "
                f"{list(image.shape)} in [{float(image.min()):g}, {float(image.max()):g}]; PIL images may have any size"
            )
        return image.float()
    if isinstance(image, np.ndarray):
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
            raise InputError(f"image: an array must be 8-bit RGB [h, w, 3], not {image.dtype} {list(image.shape)}")
        image = Image.fromarray(image)
    if not isinstance(image, Image.Image):
        raise InputError(f"image: give a PIL image, a tensor, an array, or a list of them, not {type(image).__name__}")
    values = np.asarray(fit(image, height, width), dtype=np.float32)
    # In the order of diffusers' VaeImageProcessor.
    return torch.from_numpy(2 * (values / 255) - 1).permute(2, 0, 1).contiguous()


def as_images(image: ImageInput | Sequence[ImageInput] | None) -> list[Any]:
    """Return one or several images as a list; a batch of pixels [b, 3, h, w] is taken apart; None gives []."""
    if image is None:
        return []
    if isinstance(image, Image.Image) or (isinstance(image, Tensor | np.ndarray) and image.ndim == 3):
        return [image]
    return list(image)


def repeated(values: Sequence[Any], count: int, each: int, name: str) -> list[Any]:
    """Return `count` values, each `each` times; a single one serves for all.

    Raises:
        InputError: naming both numbers.
    """
    if len(values) not in (1, count):
        raise InputError(
            f"{name}: {len(values)} given for a batch of {count}; give one, or as many as there are images and prompts"
        )
    return [value for value in (values if len(values) == count else list(values) * count) for _ in range(each)]


def expand_text(text: TextEmbeddings, count: int, each: int, name: str) -> TextEmbeddings:
    """Return embeddings for `count` prompts, each repeated `each` times; a single one serves for all."""
    rows = torch.tensor(repeated(range(text.sequence.shape[0]), count, each, name), device=text.sequence.device)
    return TextEmbeddings(text.sequence[rows], text.pooled[rows.to(text.pooled.device)])


def given_text(sequence: Tensor | None, pooled: Tensor | None, name: str) -> TextEmbeddings | None:
    """Return embeddings that were given instead of a prompt, or None.

    Raises:
        InputError: if only one of the two is given, or if their batches differ.
    """
    if sequence is None and pooled is None:
        return None
    if sequence is None or pooled is None or sequence.shape[0] != pooled.shape[0]:
        raise InputError(f"{name}prompt_embeds and {name}pooled_prompt_embeds go together, with one batch size")
    return TextEmbeddings(sequence, pooled)


def strength_of_steps(strength: float | Sequence[tuple[int, int, float]], steps: int) -> list[float]:
    """Return the strength of the reference at each step.

    Args:
        strength: one for all steps, or (first step, step after the last, strength) for ranges; 1 elsewhere.
        steps: number of steps.

    Raises:
        InputError: a range outside the steps.
    """
    if isinstance(strength, int | float):
        return [float(strength)] * steps
    strengths = [1.0] * steps
    for first, after, value in strength:
        if not 0 <= first < after <= steps:
            raise InputError(f"reference_strength: steps {first} to {after} are not within 0 to {steps}")
        strengths[first:after] = [float(value)] * (after - first)
    return strengths
