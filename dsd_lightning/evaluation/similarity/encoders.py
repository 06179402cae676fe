"""Encodes images as unit vectors with CLIP, DINO or plain pixels, each named with its backbone."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from typing import Any, Protocol, TypeVar, runtime_checkable

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from PIL import Image
from torch import Tensor
from transformers import AutoModel, AutoTokenizer, CLIPModel

from dsd_lightning.compute.device import find_device
from dsd_lightning.evaluation.errors import EvaluationError

CLIP_MEAN, CLIP_DEVIATION = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
_IMAGENET_MEAN, _IMAGENET_DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

DINO_RESIZE = 256 / 224
"""The shorter side before the centre crop, in sides of the crop (DreamBooth, DreamBench++: 256 and 224)."""


Value = TypeVar("Value")


@runtime_checkable
class Encoder(Protocol):
    """Turns images into unit vectors whose products are cosine similarities."""

    name: str
    """Of the similarity, such as CLIP-I or DINO."""
    backbone: str
    """Folder or hub id of the weights."""

    def images(self, images: Iterable[Image.Image]) -> Float[Tensor, "n d"]:
        """Return a unit vector an image; NaN for one that holds nothing to encode, as a face encoder's without a face."""
        ...


def are_encoded(vectors: Float[Tensor, "n d"]) -> Bool[Tensor, " n"]:
    """Return which images an encoder has encoded."""
    return ~vectors.isnan().any(dim=1)


def prepared(
    image: Image.Image,
    shorter: int,
    side: int,
    mean: Sequence[float],
    deviation: Sequence[float],
    rounded: Callable[[float], int] = round,
) -> Tensor:
    """Return pixels [3, side, side]: resized by the shorter side (bicubic), the centre cropped, normalised.

    Args:
        image: of any size.
        shorter: its shorter side after resizing, pixels; the longer one is rounded down, as torchvision and transformers do.
        side: of the crop, pixels.
        mean, deviation: of the channels.
        rounded: of the crop's margin. torchvision, with which DINO is measured, rounds to the even number; transformers,
            with which CLIP is, rounds down.
    """
    image = image.convert("RGB")
    least = min(image.size)
    size = (int(shorter * image.width / least), int(shorter * image.height / least))
    image = image.resize(size, Image.Resampling.BICUBIC)
    left, top = (rounded((each - side) / 2) for each in size)
    values = np.asarray(image.crop((left, top, left + side, top + side)), dtype=np.float32) / 255
    pixels = (torch.from_numpy(values) - torch.tensor(mean)) / torch.tensor(deviation)
    return pixels.permute(2, 0, 1).contiguous()


def _loaded(kind: Any, path: str, device: str | None, **changed: Any) -> Any:
    """Return a model of transformers, whose parts are untyped, without gradients and in evaluation mode."""
    place = find_device(device)
    try:
        model = kind.from_pretrained(path, **changed)
    except (OSError, ValueError) as error:
        raise EvaluationError(
            f"path={path}: the weights cannot be loaded ({error}); give a folder or a hub id that can be reached"
        ) from error
    return model.requires_grad_(False).eval().to(place)


class Clip:
    """CLIP, for similarities of images (CLIP-I) and of image and text (CLIP-T).

    Args:
        path: folder or hub id. DreamBench++ uses openai/clip-vit-base-patch32.
        batch_size: images at once.
        device: None takes the GPU if there is one.

    Raises:
        EvaluationError: it cannot be loaded.
    """

    name = "CLIP-I"

    def __init__(self, path: str, batch_size: int = 64, device: str | None = None) -> None:
        self.backbone, self.batch_size = path, batch_size
        self.model = _loaded(CLIPModel, path, device)
        self.tokenizer = AutoTokenizer.from_pretrained(path)

    @torch.no_grad()
    def images(self, images: Iterable[Image.Image]) -> Float[Tensor, "n d"]:
        """Return a unit vector an image."""
        side = self.model.config.vision_config.image_size
        vectors = []
        for batch in batches(images, self.batch_size):
            pixels = torch.stack([prepared(each, side, side, CLIP_MEAN, CLIP_DEVIATION, math.floor) for each in batch])
            vectors.append(_unit(self.model.get_image_features(pixel_values=pixels.to(self.model.device))))
        return torch.cat(vectors)

    @torch.no_grad()
    def texts(self, texts: Iterable[str]) -> Float[Tensor, "n d"]:
        """Return a unit vector a text; texts that are too long are cut."""
        length = self.model.config.text_config.max_position_embeddings
        vectors = []
        for batch in batches(texts, self.batch_size):
            tokens = self.tokenizer(batch, padding=True, truncation=True, max_length=length, return_tensors="pt")
            vectors.append(
                _unit(
                    self.model.get_text_features(
                        input_ids=tokens["input_ids"].to(self.model.device),
                        attention_mask=tokens["attention_mask"].to(self.model.device),
                    )
                )
            )
        return torch.cat(vectors)


class Dino:
    """DINO or DINOv2: the last layer's class token.

    Args:
        path: folder or hub id, such as facebook/dino-vits16 or facebook/dinov2-small.
        name: of the similarity.
        side: of the crop, pixels; DINO and DINOv2: 224.
        batch_size: images at once.
        layer_norm_eps: in place of the configuration's. DINO's own code has 1e-6, its weights on the hub say 1e-12.
        device: None takes the GPU if there is one.
        floor_margins: whether the crop's margins are rounded down, as by transformers' processor, with which DreamBench++
            measures DINOv2; otherwise to the even number, as by torchvision, with which DINO is measured.

    Raises:
        EvaluationError: it cannot be loaded.
    """

    def __init__(
        self,
        path: str,
        name: str = "DINO",
        side: int = 224,
        batch_size: int = 64,
        device: str | None = None,
        layer_norm_eps: float | None = None,
        floor_margins: bool = False,
    ) -> None:
        self.backbone, self.name, self.side, self.batch_size = path, name, side, batch_size
        self._rounded: Callable[[float], int] = math.floor if floor_margins else round
        changed = {} if layer_norm_eps is None else {"layer_norm_eps": layer_norm_eps}
        self.model = _loaded(AutoModel, path, device, **changed)
        if self.model.config.model_type.startswith("dinov2"):
            _fit_positions(self.model, side)

    @torch.no_grad()
    def images(self, images: Iterable[Image.Image]) -> Float[Tensor, "n d"]:
        """Return a unit vector an image."""
        shorter = round(DINO_RESIZE * self.side)
        vectors = []
        for batch in batches(images, self.batch_size):
            pixels = [
                prepared(each, shorter, self.side, _IMAGENET_MEAN, _IMAGENET_DEVIATION, self._rounded) for each in batch
            ]
            output = self.model(pixel_values=torch.stack(pixels).to(self.model.device))
            vectors.append(_unit(output.last_hidden_state[:, 0]))
        return torch.cat(vectors)


def _fit_positions(model: Any, side: int) -> None:
    """Resize DINOv2's position embeddings to a crop as its own code does: with an offset of 0.1 patches.

    transformers has left the offset out since (its embeddings of random weights differ by 0.04 in their cosines).

    Args:
        model: of transformers; changed in place.
        side: of the crop, pixels.
    """
    positions = model.embeddings.position_embeddings
    grid, wanted = math.isqrt(positions.shape[1] - 1), side // model.config.patch_size
    if grid == wanted:
        return
    scale = (wanted + 0.1) / grid
    patches = positions[:, 1:].unflatten(1, (grid, grid)).permute(0, 3, 1, 2)
    patches = F.interpolate(patches, scale_factor=(scale, scale), mode="bicubic", align_corners=False)
    resized = torch.cat([positions[:, :1], patches.flatten(2).transpose(1, 2)], dim=1)
    model.embeddings.position_embeddings = torch.nn.Parameter(resized, requires_grad=False)


class Pixels:
    """Normalised correlation of small images without a network; only copies score high.

    Args:
        side: of the small images, pixels.
    """

    name = "pixel correlation"

    def __init__(self, side: int = 32) -> None:
        self.side, self.backbone = side, f"RGB, {side} x {side}"

    def images(self, images: Iterable[Image.Image]) -> Float[Tensor, "n d"]:
        """Return a unit vector an image: its pixels without their mean.

        An image of one grey has no contrast to correlate: one more coordinate makes such images alike among themselves
        and unlike all others.
        """
        size = (self.side, self.side)
        small = [
            np.asarray(each.convert("RGB").resize(size, Image.Resampling.BOX), np.float32).ravel() for each in images
        ]
        values = torch.from_numpy(np.stack(small))
        values = values - values.mean(dim=1, keepdim=True)
        plain = (values.abs().amax(dim=1, keepdim=True) == 0).float()
        return F.normalize(torch.cat([values, plain], dim=1), dim=-1)


def batches(values: Iterable[Value], size: int) -> Iterator[list[Value]]:
    """Yield lists of `size` values, the last one shorter."""
    rest = iter(values)
    while batch := list(islice(rest, size)):
        yield batch


def _unit(features: object) -> Tensor:
    # transformers 5 returns an output whose pooler_output is projected; earlier versions return the projection.
    vectors = features if isinstance(features, Tensor) else features.pooler_output  # type: ignore[attr-defined]
    return F.normalize(vectors.float(), dim=-1).cpu()
