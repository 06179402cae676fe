"""Encodes the style of images with CSD (Contrastive Style Descriptors, arXiv 2404.01292): CLIP's ViT-L/14 and a projection.

The checkpoint is the authors' `checkpoint.pth` (https://github.com/learn2phoenix/CSD), or ViStoryBench's `csd_vit-large.pth`:
a state dict in the names of OpenAI's CLIP, which becomes transformers' `CLIPVisionModel` here.
"""

from __future__ import annotations

import pickle
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from PIL import Image
from torch import Tensor
from transformers import CLIPVisionConfig, CLIPVisionModel

from dsd_lightning.evaluation.errors import EvaluationError
from dsd_lightning.evaluation.similarity.encoders import CLIP_DEVIATION, CLIP_MEAN, batches

_HEAD = 64
"""Width of an attention head in all of OpenAI's CLIP models."""

_BACKBONE, _STYLE = "backbone.", "last_layer_style"

_EMBEDDINGS = {
    "class_embedding": "embeddings.class_embedding",
    "conv1.weight": "embeddings.patch_embedding.weight",
    "positional_embedding": "embeddings.position_embedding.weight",
    "ln_pre.weight": "pre_layrnorm.weight",
    "ln_pre.bias": "pre_layrnorm.bias",
    "ln_post.weight": "post_layernorm.weight",
    "ln_post.bias": "post_layernorm.bias",
}
_BLOCK = {
    "ln_1": "layer_norm1",
    "ln_2": "layer_norm2",
    "attn.out_proj": "self_attn.out_proj",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
}
"""Parts of OpenAI's CLIP, and what transformers calls them."""


class Csd:
    """CSD's style descriptor, prepared as ViStoryBench does: the whole image squeezed to a square.

    Args:
        path: of the checkpoint.
        batch_size: images at once.
        device: None takes the GPU if there is one.

    Raises:
        EvaluationError: it cannot be loaded, or is no checkpoint of CSD.
    """

    name = "CSD"

    def __init__(self, path: str, batch_size: int = 64, device: str | None = None) -> None:
        self.backbone, self.batch_size = path, batch_size
        self.device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        weights = _state(Path(path))
        self.model = _vision_model(weights, path).to(self.device)
        self.projection = weights[_STYLE].float().to(self.device)
        self.side = int(self.model.config.image_size)

    @torch.no_grad()
    def images(self, images: Iterable[Image.Image]) -> Float[Tensor, "n d"]:
        """Return a unit vector an image."""
        vectors = []
        for batch in batches(images, self.batch_size):
            pixels = torch.cat([squeezed(each, self.side) for each in batch]).to(self.device)
            pooled = self.model(pixel_values=pixels).pooler_output
            vectors.append(F.normalize(pooled @ self.projection, dim=-1).cpu())
        return torch.cat(vectors)


def squeezed(image: Image.Image, side: int) -> Float[Tensor, "1 3 s s"]:
    """Return pixels resized to a square, whatever their aspect ratio, and normalised as for CLIP.

    As torchvision's `Resize` does it to a tensor: bicubic with antialiasing, in floating point.
    """
    values = torch.from_numpy(np.asarray(image.convert("RGB"), dtype=np.float32) / 255).permute(2, 0, 1)[None]
    values = F.interpolate(values, (side, side), mode="bicubic", antialias=True, align_corners=False)
    mean, deviation = (torch.tensor(each).view(1, 3, 1, 1) for each in (CLIP_MEAN, CLIP_DEVIATION))
    return (values - mean) / deviation


def _state(file: Path) -> dict[str, Tensor]:
    """Return the checkpoint's weights by name, without the prefix of a wrapped module."""
    if not file.is_file():
        raise EvaluationError(
            f"path={file}: there is no such file; CSD's checkpoint comes from https://github.com/learn2phoenix/CSD"
        )
    try:
        content: Any = torch.load(file, map_location="cpu", weights_only=True)
    except (OSError, EOFError, RuntimeError, ValueError, pickle.UnpicklingError, zipfile.BadZipFile) as error:
        raise EvaluationError(
            f"path={file}: it cannot be read as weights ({str(error).splitlines()[0]}); if the file holds other objects, "
            "save its state dict alone: torch.save(torch.load(FILE, weights_only=False)['model_state_dict'], NEW)"
        ) from error
    content = content.get("model_state_dict", content) if isinstance(content, Mapping) else content
    if not isinstance(content, Mapping) or not all(isinstance(each, Tensor) for each in content.values()):
        raise EvaluationError(f"path={file}: a state dict is needed, as it is or as model_state_dict")
    weights = {name.removeprefix("module."): value for name, value in content.items()}
    needed = (_STYLE, *(_BACKBONE + name for name in _EMBEDDINGS))
    if absent := [name for name in needed if name not in weights]:
        raise EvaluationError(f"path={file}: {absent[0]} is missing; it is no checkpoint of CSD's ViT")
    return weights


def _vision_model(weights: Mapping[str, Tensor], path: str) -> CLIPVisionModel:
    """Return CLIP's vision model with the weights of the backbone, of whatever size they are."""
    own = {name.removeprefix(_BACKBONE): value.float() for name, value in weights.items() if name.startswith(_BACKBONE)}
    width, _, patch, _ = own["conv1.weight"].shape
    tokens = len(own["positional_embedding"]) - 1
    blocks = len({name.split(".")[2] for name in own if name.startswith("transformer.resblocks.")})
    config = CLIPVisionConfig(
        hidden_size=width,
        intermediate_size=own["transformer.resblocks.0.mlp.c_fc.weight"].shape[0],
        num_hidden_layers=blocks,
        num_attention_heads=max(1, width // _HEAD),
        image_size=round(tokens**0.5) * patch,
        patch_size=patch,
        hidden_act="quick_gelu",
    )
    model = CLIPVisionModel(config)
    try:
        renamed = _renamed(own, blocks)
    except KeyError as error:
        raise EvaluationError(f"path={path}: its weights are not those of CLIP's ViT: {error} is missing") from error
    prefix = "vision_model." if any(name.startswith("vision_model.") for name, _ in model.named_parameters()) else ""
    model.load_state_dict({f"{prefix}{name}": value for name, value in renamed.items()})
    return model.requires_grad_(False).eval()


def _renamed(own: Mapping[str, Tensor], blocks: int) -> dict[str, Tensor]:
    renamed = {name: own[original] for original, name in _EMBEDDINGS.items()}
    for block in range(blocks):
        before, after = f"transformer.resblocks.{block}.", f"encoder.layers.{block}."
        for kind in ("weight", "bias"):
            for original, name in _BLOCK.items():
                renamed[f"{after}{name}.{kind}"] = own[f"{before}{original}.{kind}"]
            parts = own[f"{before}attn.in_proj_{kind}"].chunk(3)
            for letter, part in zip("qkv", parts, strict=True):
                renamed[f"{after}self_attn.{letter}_proj.{kind}"] = part
    return renamed
