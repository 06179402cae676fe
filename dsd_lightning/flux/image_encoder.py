"""Encodes reference images with a frozen vision tower from transformers, for IP-Adapters."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
from jaxtyping import Float
from torch import Tensor, nn
from transformers import AutoConfig, AutoImageProcessor, AutoModel, CLIPVisionModelWithProjection, PreTrainedModel

from dsd_lightning.files.checkout import in_checkout

log = logging.getLogger(__name__)

NEEDED = ("config.json", "preprocessor_config.json", "model.safetensors")
"""Files of a local folder; large models have their weights in several (`model.safetensors.index.json`)."""

_RESAMPLING = {2: "bilinear", 3: "bicubic"}
"""PIL's numbers of the filters that `torch.nn.functional.interpolate` has too, with anti-aliasing."""


class ImageEncoderError(ValueError):
    """An image encoder that cannot be loaded or used; the message names the folder or hub id and the remedy."""


@dataclass(frozen=True)
class Preprocessing:
    """From pixels to what a vision tower was trained on, as its `preprocessor_config.json` says.

    Attributes:
        resize: (height, width) in pixels, or the length of the shorter side, which keeps the aspect ratio; None for no
            resizing.
        crop: (height, width) of the centre that is kept, pixels; None for all.
        mean, deviation: of each channel, on the [0, 1] scale.
        filter: "bilinear" or "bicubic".
    """

    resize: tuple[int, int] | int | None
    crop: tuple[int, int] | None
    mean: tuple[float, ...]
    deviation: tuple[float, ...]
    filter: str

    @classmethod
    def of_processor(cls, processor: Any) -> Preprocessing:
        """Return what a transformers image processor does.

        Raises:
            ImageEncoderError: for a filter or a size that is not supported, naming it.
        """
        size = processor.size
        if not processor.do_resize:
            resize: tuple[int, int] | int | None = None
        elif size.get("shortest_edge"):
            resize = int(size["shortest_edge"])
        elif size.get("height") and size.get("width"):
            resize = (int(size["height"]), int(size["width"]))
        else:
            raise ImageEncoderError(
                f"preprocessor_config.json: size={size} names neither shortest_edge nor height, width"
            )
        if int(processor.resample) not in _RESAMPLING:
            raise ImageEncoderError(
                f"preprocessor_config.json: resample={processor.resample}; 2 (bilinear) and 3 (bicubic) are supported"
            )
        kept = processor.crop_size if getattr(processor, "do_center_crop", False) else None
        normalize = bool(processor.do_normalize)
        return cls(
            resize=resize,
            crop=None if kept is None else (int(kept["height"]), int(kept["width"])),
            mean=tuple(map(float, processor.image_mean)) if normalize else (0.0, 0.0, 0.0),
            deviation=tuple(map(float, processor.image_std)) if normalize else (1.0, 1.0, 1.0),
            filter=_RESAMPLING[int(processor.resample)],
        )

    def __call__(self, pixels: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b 3 eh ew"]:
        """Return pixels in [-1, 1] of any size as the tower's input, float32."""
        image = (pixels.float() + 1) / 2
        height, width = image.shape[-2:]
        if isinstance(self.resize, int):
            wanted = (max(self.resize, self.resize * height // width), max(self.resize, self.resize * width // height))
        else:
            wanted = self.resize or (height, width)
        if wanted != (height, width):
            # A bicubic filter overshoots at edges.
            image = F.interpolate(image, size=wanted, mode=self.filter, antialias=True).clamp(0, 1)
        if self.crop is not None:
            top, left = ((have - keep) // 2 for have, keep in zip(image.shape[-2:], self.crop, strict=True))
            image = image[..., top : top + self.crop[0], left : left + self.crop[1]]
        mean, deviation = (image.new_tensor(each)[:, None, None] for each in (self.mean, self.deviation))
        return (image - mean) / deviation


class ImageEncoder(nn.Module):
    """A vision tower (CLIP, SigLIP, DINOv2, ...), frozen, with the preprocessing it was trained with.

    Args:
        tower: gives `hidden_states` and `image_embeds` (CLIP, projected) or `pooler_output`.
        preprocessing: of images in [-1, 1]; None for an encoder that is only counted (on meta).
        path: folder or hub id, for messages.
    """

    def __init__(self, tower: PreTrainedModel, preprocessing: Preprocessing | None, path: str = "") -> None:
        super().__init__()
        self.tower = tower.eval().requires_grad_(False)
        self.preprocessing, self.path = preprocessing, path
        self._fingerprint: str | None = None

    def train(self, mode: bool = True) -> ImageEncoder:
        """Stay in evaluation mode: the encoder is frozen."""
        return super().train(False)

    @property
    def patch_width(self) -> int:
        """Width of a patch token."""
        return int(self.tower.config.hidden_size)

    @property
    def num_heads(self) -> int:
        """Attention heads of the tower."""
        return int(self.tower.config.num_attention_heads)

    @property
    def pooled_width(self) -> int:
        """Width of the image's one embedding."""
        projected = isinstance(self.tower, CLIPVisionModelWithProjection)
        return int(self.tower.config.projection_dim if projected else self.tower.config.hidden_size)

    def pooled(self, pixels: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b d"]:
        """Return one embedding an image: CLIP's projected one (as IP-Adapter reads it), else the tower's pooled output.

        Raises:
            ImageEncoderError: if the tower has no pooled output.
        """
        output = self._run(pixels)
        embedding = output.get("image_embeds", output.get("pooler_output"))
        if embedding is None:
            raise ImageEncoderError(f"the vision tower of {self.path!r} has no pooled output; use arch=ip_adapter_plus")
        return embedding.to(self._weight.dtype)

    def patches(self, pixels: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b n d"]:
        """Return the tokens before the last layer, class token included, as IP-Adapter Plus reads them."""
        return self._run(pixels, output_hidden_states=True).hidden_states[-2].to(self._weight.dtype)

    @property
    def _weight(self) -> Tensor:
        return next(self.tower.parameters())

    @torch.no_grad()
    def _run(self, pixels: Float[Tensor, "b 3 h w"], **options: Any) -> Any:
        if self.preprocessing is None:
            raise ImageEncoderError("an image encoder on meta has no preprocessing and encodes nothing")
        weight = self._weight
        # Embeddings are a pure function of the image: computed in the weights' own dtype, whoever asks for them.
        with torch.autocast(weight.device.type, enabled=False):
            return self.tower(pixel_values=self.preprocessing(pixels.to(weight.device)).to(weight.dtype), **options)

    def fingerprint(self) -> str:
        """Return a short hash of weights and preprocessing: what embeddings, and all that is trained on them, depend on.

        Weights are rounded to bfloat16 first, so that an encoder loaded in float32 and in bfloat16 is the same one.
        """
        if self._weight.device.type == "meta":
            return "meta"
        if self._fingerprint is None:
            about = None if self.preprocessing is None else asdict(self.preprocessing)
            digest = hashlib.sha256(repr(about).encode())
            for name, tensor in sorted(self.tower.state_dict().items()):
                digest.update(name.encode())
                rounded = tensor.detach().to("cpu", torch.bfloat16).reshape(-1)
                digest.update(rounded.view(torch.uint8).numpy().tobytes())
            self._fingerprint = digest.hexdigest()[:16]
        return self._fingerprint


def load_image_encoder(
    path: str, initialise: str = "pretrained", config: Mapping[str, Any] | None = None
) -> ImageEncoder:
    """Return the vision tower of `path`, frozen, float32.

    Args:
        path: folder or hub id in the transformers layout: a vision tower alone, or a full CLIP or SigLIP, of which the
            vision half is read.
        initialise: "meta" builds without weights and without memory; anything else loads them.
        config: on meta, the tower's configuration with its `model_type`; that of `path` if None.

    Raises:
        ImageEncoderError: naming what is missing and the remedy.
    """
    path = in_checkout(path)
    if initialise == "meta":
        vision = _config_of(path) if config is None else AutoConfig.for_model(**dict(config))
        with torch.device("meta"):
            tower = CLIPVisionModelWithProjection(vision) if _is_clip(vision) else AutoModel.from_config(vision)
        return ImageEncoder(tower, None, path)
    vision = _config_of(path)
    try:
        kind: Any = CLIPVisionModelWithProjection if _is_clip(vision) else AutoModel
        tower, report = kind.from_pretrained(path, config=vision, dtype=torch.float32, output_loading_info=True)
        processor = AutoImageProcessor.from_pretrained(path, backend="pil")
    except _LOADING_ERRORS as error:
        raise ImageEncoderError(f"cannot load base.image_encoder.path={path!r}: {error}\n{_REMEDY}") from error
    if report["missing_keys"]:
        missing = sorted(report["missing_keys"])
        raise ImageEncoderError(
            f"base.image_encoder.path={path!r} lacks {len(missing)} weights of a {type(tower).__name__}, first {missing[0]}: "
            f"its config.json says model_type={vision.model_type!r}\n{_REMEDY}"
        )
    return ImageEncoder(tower, Preprocessing.of_processor(processor), path)


_REMEDY = (
    "Give a folder or hub id of a CLIP, SigLIP or other vision tower in the transformers layout "
    f"({', '.join(NEEDED)}), such as openai/clip-vit-large-patch14; the miniature's is assets/tiny-image-encoder "
    "(python -m dsd_lightning.pretraining.image_encoder makes it)."
)


_LOADING_ERRORS = (OSError, ValueError, HFValidationError, HfHubHTTPError, LocalEntryNotFoundError)


def _config_of(path: str) -> Any:
    """Return the configuration of the vision tower in `path`."""
    _require_files(path)
    try:
        config = AutoConfig.from_pretrained(path)
    except _LOADING_ERRORS as error:
        raise ImageEncoderError(f"cannot load base.image_encoder.path={path!r}: {error}\n{_REMEDY}") from error
    return getattr(config, "vision_config", config)


def _is_clip(vision: Any) -> bool:
    # transformers' AutoModel knows CLIP's vision tower only without the projection that IP-Adapters read.
    return bool(vision.model_type == "clip_vision_model")


def _require_files(path: str) -> None:
    folder = Path(path)
    if not folder.is_dir():
        if path.startswith((".", "/", "~", "assets/")) or path.count("/") != 1:
            raise ImageEncoderError(
                f"base.image_encoder.path={path!r}: no such folder, and no hub id (owner/name) either\n{_REMEDY}"
            )
        return
    missing = [name for name in NEEDED if not (folder / name).is_file()]
    if (folder / "model.safetensors.index.json").is_file() and "model.safetensors" in missing:
        missing.remove("model.safetensors")
    if missing:
        raise ImageEncoderError(f"base.image_encoder.path={path!r} lacks {', '.join(missing)}\n{_REMEDY}")
