"""Converts image files to pixels and back: colour modes, orientation, resizing, cropping, buckets.

Pixels are float32 [3, height, width] in [-1, 1]; images are PIL images in mode RGB, 8 bits a channel, or in mode I;16,
gray of 16 bits (depth maps), of whose three channels of pixels each has the full precision. Nothing here ever enlarges a
image: a model trained on enlarged images learns their blur.
"""

from __future__ import annotations

import io
import math
import struct
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

WHITE = (255, 255, 255, 255)
EXIF_ORIENTATION = 0x0112
_ON_ITS_SIDE = (5, 6, 7, 8)
STORED_FORMATS = {"WEBP": "webp", "PNG": "png", "JPEG": "jpg"}
"""PIL's name of each file format that pair shards hold, with its extension."""
_DAMAGE = (
    *(OSError, ValueError, SyntaxError, EOFError, struct.error, Image.DecompressionBombError),
    *(RuntimeError, TypeError, LookupError, ArithmeticError, MemoryError),
)
"""Errors of PIL's decoders on damaged files."""


LEAST_SIDE = 16
"""Shortest side of an image that a base model can encode: the VAE's 8 pixels times patches of 2."""

WHITE_16 = 65535
"""Value of white in gray of 16 bits; 257 times that of 8 bits."""


class ImageError(ValueError):
    """A file or byte string that is no image, is damaged, too large or small, or has values without a defined range."""


def is_sixteen_bit(image: Image.Image) -> bool:
    """Return whether `image` is gray of 16 bits (or in PIL's mode for integers, into which some files open)."""
    return image.mode == "I" or image.mode.startswith("I;16")


def _is_transparent(image: Image.Image) -> bool:
    return image.mode in ("RGBA", "RGBa", "LA", "La", "PA") or "transparency" in image.info


def to_rgb(image: Image.Image) -> Image.Image:
    """Return `image` upright (EXIF orientation applied) in mode RGB.

    Transparency is flattened over white; palettes, gray and CMYK are converted; 16-bit gray is scaled to 8 bits rather
    than cut off at 255. An animation gives its first frame; colour profiles are ignored.

    Raises:
        ImageError: floating point pixels, or integers beyond 16 bits, which have no defined white.
    """
    image = ImageOps.exif_transpose(image)
    if image.mode == "F":
        raise ImageError("floating point pixels have no defined range; save the image with 8 or 16 bits")
    if is_sixteen_bit(image):
        return Image.fromarray(np.round(_sixteen_bit_values(image) / 257).astype(np.uint8)).convert("RGB")
    if _is_transparent(image):
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, WHITE), image).convert("RGB")
    return image if image.mode == "RGB" else image.convert("RGB")


def _sixteen_bit_values(image: Image.Image) -> NDArray[np.uint16]:
    """Return the values [height, width] of gray of 16 bits, 0 to 65535.

    Raises:
        ImageError: integers beyond 16 bits.
    """
    values = np.asarray(image).astype(np.int64)
    if values.min() < 0 or values.max() > WHITE_16:
        raise ImageError(
            f"integer pixels between {values.min()} and {values.max()} are outside 16 bits; save 8 or 16 bits"
        )
    return values.astype(np.uint16)


def to_stored_mode(image: Image.Image) -> Image.Image:
    """Return `image` upright in the mode in which pair shards hold it: gray of 16 bits as I;16, all else as RGB.

    Raises:
        ImageError: see `to_rgb`.
    """
    if is_sixteen_bit(image):
        return Image.fromarray(_sixteen_bit_values(ImageOps.exif_transpose(image)))
    return to_rgb(image)


def load_rgb(source: bytes | str | Path) -> Image.Image:
    """Decode an image, given as the bytes or the path of a file, completely, to mode RGB (see `to_rgb`).

    Raises:
        ImageError: not an image, truncated, damaged or of undefined range; the message says which.
        FileNotFoundError: there is no such file.
    """
    return _load(source, to_rgb)


def load_image(source: bytes | str | Path) -> Image.Image:
    """Decode an image as `load_rgb` does, but leave gray of 16 bits its precision, in mode I;16."""
    return _load(source, to_stored_mode)


def _load(source: bytes | str | Path, convert: Callable[[Image.Image], Image.Image]) -> Image.Image:
    try:
        with _opened(source) as image:
            image.load()
            return convert(image)
    except (FileNotFoundError, ImageError):
        raise
    except _DAMAGE as error:
        raise ImageError(f"cannot decode {_name(source)} as an image: {_cause(error)}") from error


def _opened(source: bytes | str | Path) -> Image.Image:
    return Image.open(io.BytesIO(source) if isinstance(source, bytes) else source)


def _name(source: bytes | str | Path) -> str:
    return f"{len(source)} bytes" if isinstance(source, bytes) else str(source)


def _cause(error: Exception) -> str:
    """Return the reason for which a file cannot be decoded, without names of Python objects."""
    if isinstance(error, UnidentifiedImageError):
        return "it is empty, cut short, or of no known format"
    if isinstance(error, Image.DecompressionBombError):
        return f"it has more than {2 * (Image.MAX_IMAGE_PIXELS or 0):,} pixels; shrink it first"
    return str(error) or type(error).__name__


def require_side(image: Image.Image) -> None:
    """Refuse an image of a few pixels.

    Raises:
        ImageError: naming its size.
    """
    if min(image.size) < LEAST_SIDE:
        raise ImageError(
            f"an image of {image.width} x {image.height} pixels is too small: both sides need {LEAST_SIDE}"
        )


def upright_size(source: bytes | str | Path) -> tuple[int, int]:
    """Return (width, height) of an image's file after its EXIF orientation is applied; reads the header alone.

    Raises:
        ImageError: not an image.
        FileNotFoundError: there is no such file.
    """
    try:
        with _opened(source) as image:
            width, height = image.size
            return (height, width) if image.getexif().get(EXIF_ORIENTATION, 1) in _ON_ITS_SIDE else (width, height)
    except FileNotFoundError:
        raise
    except _DAMAGE as error:
        raise ImageError(f"cannot decode {_name(source)} as an image: {_cause(error)}") from error


def stored_format(data: bytes) -> str | None:
    """Return the extension (webp, png or jpg) under which `data` can be stored unchanged, or None where it cannot.

    Unchanged means that the file is of one of these formats and that `to_stored_mode` would leave its pixels as they are:
    mode RGB or, in a png, I;16; upright, opaque, one frame. Only the header is read.
    """
    try:
        with Image.open(io.BytesIO(data)) as image:
            extension = STORED_FORMATS.get(image.format or "")
            upright = image.getexif().get(EXIF_ORIENTATION, 1) == 1
            plain = image.mode in ("RGB", "I;16") and not _is_transparent(image) and getattr(image, "n_frames", 1) == 1
    except _DAMAGE:
        return None
    return extension if plain and upright else None


def shrink(image: Image.Image, short_side: int | None) -> Image.Image:
    """Return `image` with a short side of at most `short_side` pixels, aspect kept; a smaller one comes back as is."""
    if short_side is None or min(image.size) <= short_side:
        return image
    scale = short_side / min(image.size)
    size = (max(short_side, round(image.width * scale)), max(short_side, round(image.height * scale)))
    if is_sixteen_bit(image):
        values = np.asarray(_as_float(image).resize(size, Image.Resampling.BICUBIC))
        return Image.fromarray(np.clip(np.round(values), 0, WHITE_16).astype(np.uint16))
    return image.resize(size, Image.Resampling.BICUBIC)


def _as_float(image: Image.Image) -> Image.Image:
    """Return gray of 16 bits in mode F with the same values, since PIL resamples that without rounding."""
    return Image.fromarray(_sixteen_bit_values(image).astype(np.float32))


def covering_size(size: tuple[int, int], height: int, width: int) -> tuple[int, int]:
    """Return (width, height) to which an image of `size` (width, height) is resized so that it just covers a frame."""
    scale = max(height / size[1], width / size[0])
    return max(width, round(size[0] * scale)), max(height, round(size[1] * scale))


def to_pixels(
    image: Image.Image, height: int, width: int, *, crop: tuple[float, float] = (0.5, 0.5)
) -> Float[Tensor, "3 h w"]:
    """Resize `image` until it just covers `height` x `width`, crop, and return pixels.

    Args:
        image: an image of any mode.
        height: rows of the result, pixels.
        width: columns of the result, pixels.
        crop: position of the crop within the surplus of the resized image: (top to bottom, left to right), each in
            [0, 1]; (0.5, 0.5) is the middle.

    Returns:
        float32 [3, height, width] in [-1, 1]; bicubic with antialiasing. An image of the right size passes exactly.

    Raises:
        ValueError: the image is smaller than the result, in either direction; or `crop` is outside [0, 1].
    """
    if not all(0 <= position <= 1 for position in crop):
        raise ValueError(f"crop={crop}: both positions must lie in [0, 1]")
    if image.width < width or image.height < height:
        raise ValueError(
            f"an image of {image.width} x {image.height} (width x height) cannot fill {width} x {height} without "
            f"being enlarged; ask for a lower resolution or leave this image out"
        )
    resized = covering_size(image.size, height, width)
    top, left = round(crop[0] * (resized[1] - height)), round(crop[1] * (resized[0] - width))
    box = (left, top, left + width, top + height)
    if is_sixteen_bit(image):
        gray = np.asarray(_as_float(image).resize(resized, Image.Resampling.BICUBIC).crop(box))
        # Unlike 8 bits, floats are not clipped where bicubic resampling overshoots.
        return torch.from_numpy(gray / (WHITE_16 / 2) - 1).clamp(-1, 1).expand(3, -1, -1).contiguous()
    image = to_rgb(image).resize(resized, Image.Resampling.BICUBIC)
    values = np.asarray(image.crop(box), dtype=np.float32)
    return torch.from_numpy(values / 127.5 - 1).permute(2, 0, 1).contiguous()


def is_gray(pixels: Float[Tensor, "3 h w"]) -> bool:
    """Return whether all three channels are equal everywhere, as those of a depth map are."""
    return bool((pixels == pixels[:1]).all())


def to_gray16(pixels: Float[Tensor, "3 h w"]) -> Image.Image:
    """Return gray pixels in [-1, 1] as gray of 16 bits; values outside are clamped. The inverse of `to_pixels`, exactly.

    Raises:
        ValueError: the channels differ.
    """
    if not is_gray(pixels):
        raise ValueError("pixels whose channels differ are no gray image; store them with to_image, 8 bits a channel")
    values = ((pixels[0].detach().double().cpu().clamp(-1, 1) + 1) * (WHITE_16 / 2)).round()
    return Image.fromarray(values.numpy().astype(np.uint16))


def to_image(pixels: Float[Tensor, "3 h w"]) -> Image.Image:
    """Return pixels in [-1, 1] as an RGB image; values outside are clamped. The inverse of `to_pixels`, exactly."""
    values = ((pixels.detach().float().cpu().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
    return Image.fromarray(values.permute(1, 2, 0).contiguous().numpy())


def bucket_for(width: int, height: int, buckets: Sequence[tuple[int, int]]) -> tuple[int, int]:
    """Return the bucket (width, height) of nearest aspect ratio that an image of `width` x `height` fills.

    Nearness is the difference of the aspect ratios' logarithms; of equally near buckets the one with more pixels wins.

    Raises:
        ValueError: the image would have to be enlarged for every bucket, or there is none.
    """
    filled = [bucket for bucket in buckets if bucket[0] <= width and bucket[1] <= height]
    if not filled:
        raise ValueError(
            f"an image of {width} x {height} (width x height) fills none of the buckets {list(buckets)} without being "
            f"enlarged; add a smaller bucket or leave this image out"
        )
    aspect = math.log(width / height)
    return min(filled, key=lambda bucket: (round(abs(math.log(bucket[0] / bucket[1]) - aspect), 9), -math.prod(bucket)))
