"""Makes what the public code of metrics and ours are run on: random weights, images, datasets, finds of a detector."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from transformers import (
    AutoTokenizer,
    CLIPConfig,
    CLIPModel,
    CLIPTextConfig,
    CLIPVisionConfig,
    Dinov2Config,
    Dinov2Model,
    ViTConfig,
    ViTModel,
)

from dsd_lightning.evaluation.samples.result_folder import save_jpeg
from dsd_lightning.randomness import numpy_generator

TOKENIZER = Path(__file__).parents[2] / "assets" / "tiny-flux" / "tokenizer"

CSD_SIZES = (48, 224, 2, 128, 14)
"""Of CSD's small ViT: width of the embedding, side of the image, blocks, width, side of a patch."""

SIDES = (96, 131, 150, 171, 197, 200, 223, 224, 230, 251, 255, 256, 260, 301, 333)
"""Of images, pixels: smaller and larger than what encoders see, odd and even."""

_OF_DINO = {
    "embeddings.cls_token": "cls_token",
    "embeddings.position_embeddings": "pos_embed",
    "embeddings.patch_embeddings.projection": "patch_embed.proj",
    "layernorm": "norm",
}
_OF_DINOS_BLOCK = {
    "layernorm_before": "norm1",
    "layernorm_after": "norm2",
    "attention.o_proj": "attn.proj",
    "mlp.fc1": "mlp.fc1",
    "mlp.fc2": "mlp.fc2",
}
"""Parts of transformers' ViT, and what DINO's code calls them."""


def image(*key: int | str) -> Image.Image:
    """Return an image of blurred blocks, of a size that the key decides."""
    rng = numpy_generator("published", *key)
    width, height = (int(each) for each in rng.choice(SIDES, 2))
    blocks = rng.integers(0, 256, (int(rng.integers(3, 12)), int(rng.integers(3, 12)), 3), dtype=np.uint8)
    return Image.fromarray(blocks).resize((width, height), Image.Resampling.BICUBIC)


def write_dino(folder: Path, patch: int) -> None:
    """Write a random ViT-S for transformers (the folder) and for DINO's code (`FOLDER.pth`)."""
    sizes = {"hidden_size": 384, "num_hidden_layers": 12, "num_attention_heads": 6, "intermediate_size": 1536}
    torch.manual_seed(patch)
    # The hub's weights say 1e-12, too.
    config = ViTConfig(**sizes, image_size=224, patch_size=patch, layer_norm_eps=1e-12, initializer_range=0.08)
    model = ViTModel(config, add_pooling_layer=False)
    _spread(model)
    model.save_pretrained(folder)
    torch.save(_in_dinos_names(model.state_dict()), f"{folder}.pth")


def _spread(model: torch.nn.Module) -> None:
    """Give biases and norms random values, which are zeros and ones otherwise and would hide a mistake."""
    for name, value in model.named_parameters():
        if value.ndim == 1:
            value.data = 0.1 * torch.randn_like(value) + float("norm" in name and name.endswith("weight"))


def _in_dinos_names(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    renamed = {}
    for name, value in weights.items():
        stem, _, kind = name.rpartition(".")
        if name in _OF_DINO:
            renamed[_OF_DINO[name]] = value
        elif stem in _OF_DINO:
            renamed[f"{_OF_DINO[stem]}.{kind}"] = value
        elif not stem.endswith(("q_proj", "k_proj", "v_proj")):
            block, _, part = stem.removeprefix("layers.").partition(".")
            renamed[f"blocks.{block}.{_OF_DINOS_BLOCK[part]}.{kind}"] = value
        elif stem.endswith("q_proj"):
            root = stem.removesuffix("q_proj")
            parts = [weights[f"{root}{letter}_proj.{kind}"] for letter in "qkv"]
            renamed[f"blocks.{stem.split('.')[1]}.attn.qkv.{kind}"] = torch.cat(parts)
    return renamed


def write_dinov2(folder: Path) -> None:
    """Write a small random DINOv2 with position embeddings of 518 pixels, as the published ones are."""
    torch.manual_seed(2)
    sizes = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    model = Dinov2Model(Dinov2Config(**sizes, image_size=518, patch_size=14, initializer_range=0.3))
    _spread(model)
    model.save_pretrained(folder)
    _write_processor(folder, "BitImageProcessor", 256, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


def write_clip(folder: Path, patch: int) -> None:
    """Write a small random CLIP of 224 pixels with its processor and tokenizer."""
    tokenizer = AutoTokenizer.from_pretrained(TOKENIZER)
    sizes = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 2}
    ends = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("eos", "bos", "pad")}
    torch.manual_seed(patch)
    vision = CLIPVisionConfig(**sizes, image_size=224, patch_size=patch, initializer_range=0.5)
    text = CLIPTextConfig(**sizes, vocab_size=len(tokenizer), max_position_embeddings=77, **ends)
    model = CLIPModel(CLIPConfig(text_config=text.to_dict(), vision_config=vision.to_dict(), projection_dim=32))
    _spread(model)
    model.save_pretrained(folder)
    # Not tokenizer.json, whose form has changed since the versions that their code is run with.
    for name in ("vocab.json", "merges.txt", "tokenizer_config.json"):
        (folder / name).write_bytes((TOKENIZER / name).read_bytes())
    mean, deviation = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
    _write_processor(folder, "CLIPImageProcessor", 224, mean, deviation)


def _write_processor(
    folder: Path, kind: str, shorter: int, mean: tuple[float, ...], deviation: tuple[float, ...]
) -> None:
    """Write the settings that the hub's folders hold."""
    settings = {
        "image_processor_type": kind,
        "size": {"shortest_edge": shorter},
        "crop_size": {"height": 224, "width": 224},
        "resample": 3,
        "image_mean": mean,
        "image_std": deviation,
        **{f"do_{each}": True for each in ("resize", "center_crop", "rescale", "normalize", "convert_rgb")},
        "rescale_factor": 1 / 255,
    }
    (folder / "preprocessor_config.json").write_text(json.dumps(settings))


def write_csd(file: Path) -> None:
    """Write random weights of CSD's architecture, in its names, with a small ViT."""
    embedding, side, blocks, width, patch = CSD_SIZES
    torch.manual_seed(1)
    shapes: dict[str, tuple[int, ...]] = {
        "class_embedding": (width,),
        "positional_embedding": ((side // patch) ** 2 + 1, width),
        "conv1.weight": (width, 3, patch, patch),
    }
    norms = ["ln_pre", "ln_post"]
    for block in range(blocks):
        root = f"transformer.resblocks.{block}"
        shapes |= {f"{root}.attn.in_proj_weight": (3 * width, width), f"{root}.attn.in_proj_bias": (3 * width,)}
        for name, (out, into) in {
            "attn.out_proj": (width, width),
            "mlp.c_fc": (4 * width, width),
            "mlp.c_proj": (width, 4 * width),
        }.items():
            shapes |= {f"{root}.{name}.weight": (out, into), f"{root}.{name}.bias": (out,)}
        norms += [f"{root}.ln_1", f"{root}.ln_2"]
    shapes |= {f"{name}.{kind}": (width,) for name in norms for kind in ("weight", "bias")}
    state = {}
    for name, shape in shapes.items():
        is_scale = name.rsplit(".", 1)[0] in norms and name.endswith("weight")
        state[f"backbone.{name}"] = 0.1 * torch.randn(shape) + float(is_scale)
    for name in ("last_layer_style", "last_layer_content"):
        state[name] = 0.1 * torch.randn(width, embedding)
    file.parent.mkdir(parents=True, exist_ok=True)
    torch.save(state, file)


PROMPTS = tuple(f"a small round one number {number} in the snow, at night" for number in range(3))


def write_dreambenchpp(root: Path) -> None:
    """Write DreamBench++'s dataset with a subject of two categories each, three prompts a subject."""
    for category in ("live_subject/animal", "style"):
        save_jpeg(image(category), root / "images" / category / "00.jpg")
        file = root / "captions" / category / "00.txt"
        file.parent.mkdir(parents=True)
        file.write_text("Cute Cat\n" + "\n".join(PROMPTS) + "\n")


def write_dreambench(root: Path) -> None:
    """Write DreamBench's dataset with two subjects, of three and two images."""
    for name, count in {"mug": 3, "dog": 2}.items():
        for number in range(count):
            save_jpeg(image("dreambench", name, number), root / "dataset" / name / f"{number:02d}.jpg")
    prompts = "\nprompt_list = [\n'a {0} {1} on the moon'.format(u, c),\n'a {0} {1} in snow'.format(u, c),\n]\n"
    (root / "dataset" / "prompts_and_classes.txt").write_text(
        f"subject_name,class\nmug,cup\ndog,dog\n{prompts}{prompts}"
    )


STAGES = (("Ann",), ("Ann", "Bob"), (), ("Ann", "Bob", "Rex"), ("Bob",), ("Rex", "Bob"), ("Ann",))
"""Who is on stage, shot by shot."""


def write_stories(root: Path, stories: int, realistic: Collection[str] = ()) -> None:
    """Write ViStoryBench's dataset: stories of seven shots with up to three characters, some tagged as realistic people."""
    for number in range(1, stories + 1):
        folder = root / "ViStory" / f"{number:02d}"
        names = {name: f"{name} of story {number}" for name in ("Ann", "Bob", "Rex")}
        for name in names:
            for order in range(2):
                save_jpeg(image("reference", number, name, order), folder / "image" / name / f"{order:02d}.jpg")
        characters = {
            name: {
                "name_en": whole,
                "name_ch": whole,
                "prompt_en": f"looks of {name}",
                "prompt_ch": "",
                "tag": "realistic_human" if name in realistic else "non_human",
            }
            for name, whole in names.items()
        }
        shots = [
            {
                "index": index,
                **{
                    key: {"en": f"{word} {index} of story {number}", "ch": ""}
                    for key, word in (
                        ("Setting Description", "scene"),
                        ("Plot Correspondence", "plot"),
                        ("Static Shot Description", "action"),
                        ("Shot Perspective Design", "camera"),
                    )
                },
                "Characters Appearing": {"en": list(stage), "ch": list(stage)},
            }
            for index, stage in enumerate(STAGES, 1)
        ]
        content = {"Story_type": {"en": "tale", "ch": ""}, "Shots": shots, "Characters": characters}
        (folder / "story.json").write_text(json.dumps(content), encoding="utf-8")


def boxes_of(file: Path) -> list[list[float]]:
    """Return a detector's boxes in an image: centre, width and height as shares of the image, and confidence."""
    rng = numpy_generator("boxes", file.parent.name, file.name)
    boxes: list[Any] = []
    for _ in range(int(rng.integers(0, 5)) if file.suffix == ".png" else 1 + int(rng.integers(0, 2))):
        size, centre = rng.uniform(0.2, 0.6, 2), rng.uniform(0.2, 0.8, 2)
        boxes.append([*map(float, centre), *map(float, size), float(rng.uniform(0.3, 1))])
    return boxes
