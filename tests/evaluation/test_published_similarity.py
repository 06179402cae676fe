"""Shows that similarities have the values of the published code, stated here independently, on equal weights and images.

What is stated again: DreamBench++'s `metrics/clip_score.py` and `metrics/dino_score.py` (which preprocess with transformers'
CLIP processor and with torchvision), DreamBooth's definition over all real images (arXiv 2208.12242, Section 4.1), and CSD's
`model.py` over OpenAI's CLIP, as ViStoryBench's `csd_evaluator.py` uses it.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
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
from transformers.models.bit.image_processing_pil_bit import BitImageProcessorPil
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from dsd_lightning.evaluation.errors import EvaluationError
from dsd_lightning.evaluation.samples.benchmark import dreambench
from dsd_lightning.evaluation.samples.result_folder import Samples
from dsd_lightning.evaluation.similarity.csd import Csd
from dsd_lightning.evaluation.similarity.encoders import Clip, Dino
from dsd_lightning.evaluation.similarity.measures import measure

TINY = Path(__file__).parents[2] / "assets" / "tiny-flux"

MEAN, DEVIATION = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


def noise(seed: int, width: int = 75, height: int = 50) -> Image.Image:
    values = np.random.default_rng(seed).integers(0, 256, (height // 5 + 1, width // 5 + 1, 3), dtype=np.uint8)
    return Image.fromarray(values).resize((width, height), Image.Resampling.BICUBIC)


@pytest.fixture(scope="module")
def dino(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dino")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
        config = ViTConfig(**sizes, image_size=28, patch_size=7, layer_norm_eps=1e-12, initializer_range=0.3)
        ViTModel(config, add_pooling_layer=False).save_pretrained(folder)
    return folder


def dino_by_its_own_code(weights: dict[str, Tensor], image: Image.Image) -> Tensor:
    """DINO's VisionTransformer with LayerNorm(eps=1e-6), behind Resize(32, bicubic), CenterCrop(28) and Normalize."""
    width, height = image.size
    scale = min(width, height)
    image = image.resize((int(32 * width / scale), int(32 * height / scale)), Image.Resampling.BICUBIC)
    top, left = round((image.height - 28) / 2.0), round((image.width - 28) / 2.0)
    pixels = torch.from_numpy(np.asarray(image)[top : top + 28, left : left + 28].astype(np.float32) / 255)
    pixels = ((pixels - torch.tensor((0.485, 0.456, 0.406))) / torch.tensor((0.229, 0.224, 0.225))).permute(2, 0, 1)[
        None
    ]
    get = weights.__getitem__
    tokens = F.conv2d(
        pixels,
        get("embeddings.patch_embeddings.projection.weight"),
        get("embeddings.patch_embeddings.projection.bias"),
        stride=7,
    )
    tokens = torch.cat([get("embeddings.cls_token"), tokens.flatten(2).transpose(1, 2)], 1)
    tokens = tokens + get("embeddings.position_embeddings")

    def linear(name: str, value: Tensor) -> Tensor:
        return F.linear(value, get(f"{name}.weight"), get(f"{name}.bias"))

    def norm(name: str, value: Tensor) -> Tensor:
        return F.layer_norm(value, (32,), get(f"{name}.weight"), get(f"{name}.bias"), 1e-6)

    for block in range(2):
        root = f"layers.{block}"
        before = norm(f"{root}.layernorm_before", tokens)
        q, k, v = (
            linear(f"{root}.attention.{each}_proj", before).unflatten(-1, (2, 16)).transpose(1, 2) for each in "qkv"
        )
        mixed = ((q @ k.transpose(-1, -2)) * 16**-0.5).softmax(-1) @ v
        tokens = tokens + linear(f"{root}.attention.o_proj", mixed.transpose(1, 2).flatten(2))
        inner = F.gelu(linear(f"{root}.mlp.fc1", norm(f"{root}.layernorm_after", tokens)))
        tokens = tokens + linear(f"{root}.mlp.fc2", inner)
    return norm("layernorm", tokens)[0, 0]


def test_dinos_embeddings_are_those_of_its_own_code(dino: Path) -> None:
    weights = ViTModel.from_pretrained(dino, add_pooling_layer=False).state_dict()
    encoder = Dino(str(dino), side=28, layer_norm_eps=1e-6)
    for size in ((75, 50), (50, 77), (64, 64), (53, 50)):
        own = F.normalize(dino_by_its_own_code(weights, noise(1, *size)), dim=-1)
        assert torch.allclose(encoder.images([noise(1, *size)])[0], own, atol=1e-5), size


def test_dreambenchs_metric_is_the_mean_over_all_pairs_of_results_and_real_images(dino: Path, tmp_path: Path) -> None:
    root = tmp_path / "dataset"
    for number, (name, images) in enumerate({"mug": 3, "dog": 2}.items()):
        (root / name).mkdir(parents=True)
        for image in range(images):
            noise(10 * number + image).save(root / name / f"{image:02d}.png")
    (root / "prompts_and_classes.txt").write_text(
        "subject_name,class\nmug,cup\ndog,dog\n\nprompt_list = [\n'a {0} {1} on the moon'.format(u, c),\n"
        "'a {0} {1} in snow'.format(u, c),\n]\nprompt_list = [\n'a {0} {1} asleep'.format(u, c),\n"
        "'a {0} {1} at sea'.format(u, c),\n]\n"
    )
    cases = dreambench(tmp_path).cases()
    samples = Samples(tmp_path / "samples")
    for number, case in enumerate(cases):
        samples.write(case, noise(100 + number), noise(0))
    encoder = Dino(str(dino), side=28)
    metric = next(each for each in measure(samples, cases, [encoder]) if each.name == "DINO")
    by_subject = []
    for name in ("dog", "mug"):
        real = [encoder.images([Image.open(file)])[0] for file in sorted((root / name).iterdir())]
        generated = [
            encoder.images([Image.open(file)])[0] for file in sorted((samples.folder / "tgt_image" / name).iterdir())
        ]
        pairs = [float(F.cosine_similarity(one, other, dim=0)) for one, other in itertools.product(generated, real)]
        by_subject.append(sum(pairs) / len(pairs))
    assert metric.value == pytest.approx(np.mean(by_subject), abs=1e-5)
    assert (metric.subjects, metric.images, metric.missing) == (2, 4, 0)


def test_dinov2s_embeddings_are_those_of_its_processor_and_model_in_transformers(tmp_path: Path) -> None:
    """dino_score.py: BitImageProcessor, whose crop rounds its margins down, and the last layer's class token."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
        config = Dinov2Config(**sizes, image_size=56, patch_size=7, initializer_range=0.3)
        Dinov2Model(config).save_pretrained(tmp_path)
    model = Dinov2Model.from_pretrained(tmp_path)
    # As in DINOv2's own code: positions of 8 x 8 patches become 4 x 4, with an offset of 0.1.
    positions = model.embeddings.position_embeddings.detach()
    patches = positions[:, 1:].reshape(1, 8, 8, 32).permute(0, 3, 1, 2)
    patches = F.interpolate(patches, scale_factor=(4.1 / 8, 4.1 / 8), mode="bicubic", align_corners=False)
    patches = patches.permute(0, 2, 3, 1).reshape(1, 16, 32)
    model.embeddings.position_embeddings = torch.nn.Parameter(torch.cat([positions[:, :1], patches], 1))
    processor = BitImageProcessorPil(
        size={"shortest_edge": 32},
        crop_size={"height": 28, "width": 28},
        resample=Image.Resampling.BICUBIC,
        image_mean=(0.485, 0.456, 0.406),
        image_std=(0.229, 0.224, 0.225),
    )
    images = [noise(seed, *size) for seed, size in enumerate(((75, 50), (50, 77), (51, 32), (53, 50), (40, 21)))]
    with torch.no_grad():
        pixels = torch.cat([processor(images=each, return_tensors="pt")["pixel_values"] for each in images])
        own = F.normalize(model(pixels).last_hidden_state[:, 0], dim=-1)
    ours = Dino(str(tmp_path), "DINOv2", side=28, floor_margins=True).images(images)
    assert torch.allclose(ours, own, atol=1e-5)
    assert not torch.allclose(Dino(str(tmp_path), "DINOv2", side=28).images(images), own, atol=1e-3)


def test_clips_scores_are_those_of_its_processor_and_model_in_transformers(tmp_path: Path) -> None:
    """clip_score.py: CLIPProcessor and CLIPModel, features of norm 1, the mean of their products."""
    tokenizer = AutoTokenizer.from_pretrained(TINY / "tokenizer")
    small = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    ends = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("eos", "bos", "pad")}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        vision = CLIPVisionConfig(**small, image_size=32, patch_size=8, initializer_range=0.5)
        text = CLIPTextConfig(**small, vocab_size=len(tokenizer), max_position_embeddings=77, **ends)
        config = CLIPConfig(text_config=text.to_dict(), vision_config=vision.to_dict(), projection_dim=8)
        CLIPModel(config).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    model = CLIPModel.from_pretrained(tmp_path)
    processor = CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    images = [noise(seed, *size) for seed, size in enumerate(((75, 50), (50, 77), (64, 64), (53, 50), (40, 21)))]
    texts = ["a cup on the moon", "a dog", "a cat in the snow at night", "x", "two words"]
    encoder = Clip(str(tmp_path))
    with torch.no_grad():
        pixels = torch.cat([processor(images=image, return_tensors="pt")["pixel_values"] for image in images])
        seen = F.normalize(model.get_image_features(pixels).pooler_output, dim=-1)
        tokens = [tokenizer(each, padding=True, return_tensors="pt") for each in texts]
        read = torch.cat([F.normalize(model.get_text_features(**each).pooler_output, dim=-1) for each in tokens])
    assert torch.allclose(encoder.images(images), seen, atol=1e-5)
    assert torch.allclose(encoder.texts(texts), read, atol=1e-5)
    assert (seen @ seen.T).min() < 0.999


# --- CSD.


@pytest.fixture(scope="module")
def csd(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return random weights in the names of CSD's checkpoint: OpenAI's CLIP, two blocks of two heads."""
    rng = torch.Generator().manual_seed(0)

    def random(*shape: int) -> Tensor:
        return 0.2 * torch.randn(shape, generator=rng)

    width, weights = 128, {}
    weights["class_embedding"], weights["positional_embedding"] = random(width), random(1 + 16, width)
    weights["conv1.weight"] = random(width, 3, 7, 7)
    for name in ("ln_pre", "ln_post"):
        weights |= {f"{name}.weight": 1 + random(width), f"{name}.bias": random(width)}
    for block in range(2):
        root = f"transformer.resblocks.{block}."
        shapes = {"attn.out_proj": (width, width), "mlp.c_fc": (4 * width, width), "mlp.c_proj": (width, 4 * width)}
        for name, shape in shapes.items():
            weights |= {f"{root}{name}.weight": random(*shape), f"{root}{name}.bias": random(shape[0])}
        weights |= {
            f"{root}attn.in_proj_weight": random(3 * width, width),
            f"{root}attn.in_proj_bias": random(3 * width),
        }
        for name in ("ln_1", "ln_2"):
            weights |= {f"{root}{name}.weight": 1 + random(width), f"{root}{name}.bias": random(width)}
    state = {f"module.backbone.{name}": value for name, value in weights.items()}
    state |= {"module.last_layer_style": random(width, 48), "module.last_layer_content": random(width, 48)}
    file = tmp_path_factory.mktemp("csd") / "checkpoint.pth"
    torch.save({"model_state_dict": state, "epoch": 3}, file)
    return file


def csd_by_its_own_code(state: dict[str, Tensor], image: Image.Image) -> Tensor:
    """OpenAI's VisionTransformer without its projection, then the style layer, on an image squeezed to 28 x 28."""
    pixels = torch.from_numpy(np.array(image).astype(np.float32) / 255.0)[None].permute(0, 3, 1, 2)
    pixels = F.interpolate(pixels, (28, 28), mode="bicubic", antialias=True)
    pixels = (pixels - torch.tensor(MEAN)[:, None, None]) / torch.tensor(DEVIATION)[:, None, None]

    def get(name: str) -> Tensor:
        return state[f"module.backbone.{name}"]

    def norm(name: str, value: Tensor) -> Tensor:
        return F.layer_norm(value, (128,), get(f"{name}.weight"), get(f"{name}.bias"))

    tokens = F.conv2d(pixels, get("conv1.weight"), stride=7).reshape(1, 128, -1).permute(0, 2, 1)
    tokens = torch.cat([get("class_embedding").expand(1, 1, -1), tokens], dim=1) + get("positional_embedding")
    tokens = norm("ln_pre", tokens).permute(1, 0, 2)
    for block in range(2):
        root = f"transformer.resblocks.{block}"
        attention = torch.nn.MultiheadAttention(128, 2)
        attention.load_state_dict(
            {
                name: get(f"{root}.attn.{name}")
                for name in ("in_proj_weight", "in_proj_bias", "out_proj.weight", "out_proj.bias")
            }
        )
        before = norm(f"{root}.ln_1", tokens)
        tokens = tokens + attention(before, before, before, need_weights=False)[0]
        inner = F.linear(norm(f"{root}.ln_2", tokens), get(f"{root}.mlp.c_fc.weight"), get(f"{root}.mlp.c_fc.bias"))
        inner = inner * torch.sigmoid(1.702 * inner)
        tokens = tokens + F.linear(inner, get(f"{root}.mlp.c_proj.weight"), get(f"{root}.mlp.c_proj.bias"))
    feature = norm("ln_post", tokens.permute(1, 0, 2)[:, 0, :])
    return F.normalize(feature @ state["module.last_layer_style"], dim=1)[0].detach()


def test_csds_descriptors_are_those_of_its_own_code(csd: Path, tmp_path: Path) -> None:
    state = torch.load(csd, weights_only=True)["model_state_dict"]
    flat = tmp_path / "csd_vit-large.pth"
    torch.save({name.removeprefix("module."): value for name, value in state.items()}, flat)
    images = [noise(seed, *size) for seed, size in enumerate(((75, 50), (28, 28), (20, 33)))]
    own = torch.stack([csd_by_its_own_code(state, image) for image in images])
    for file in (csd, flat):
        ours = Csd(str(file)).images(images)
        assert torch.allclose(ours, own, atol=1e-5)
        assert torch.allclose(ours @ ours.T, own @ own.T, atol=1e-5)
    assert (own @ own.T).min() < 0.99


WRONG: dict[str, Callable[[dict[str, Tensor]], object]] = {
    "last_layer_style is missing": lambda state: {k: v for k, v in state.items() if "style" not in k},
    "a state dict is needed": lambda state: [1, 2],
    "not those of CLIP's ViT": lambda state: {k: v for k, v in state.items() if "mlp.c_fc.bias" not in k},
}


@pytest.mark.parametrize("message", WRONG)
def test_other_checkpoints_are_refused(message: str, csd: Path, tmp_path: Path) -> None:
    torch.save(WRONG[message](torch.load(csd, weights_only=True)["model_state_dict"]), tmp_path / "other.pth")
    with pytest.raises(EvaluationError, match=message):
        Csd(str(tmp_path / "other.pth"))
    (tmp_path / "other.pth").write_bytes(b"no weights")
    with pytest.raises(EvaluationError, match="cannot be read"):
        Csd(str(tmp_path / "other.pth"))
