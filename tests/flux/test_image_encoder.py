"""Reference images reach a vision tower as transformers would prepare them; a wrong folder is refused by name."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from support.models.toy_models import image_encoder
from torch import Tensor
from transformers import (
    CLIPConfig,
    CLIPImageProcessor,
    CLIPModel,
    CLIPVisionConfig,
    CLIPVisionModel,
    CLIPVisionModelWithProjection,
    SiglipConfig,
    SiglipImageProcessor,
    SiglipModel,
    SiglipVisionConfig,
    SiglipVisionModel,
)

from dsd_lightning.flux.image_encoder import ImageEncoderError, load_image_encoder
from dsd_lightning.miniature.world import Identity
from dsd_lightning.pretraining.image_encoder import draw_images
from dsd_lightning.randomness import numpy_generator

SHIPPED = Path(__file__).parents[2] / "assets" / "tiny-image-encoder"
VISION = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 32,
    "patch_size": 8,
}
TEXT = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "vocab_size": 50,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 1,
}
CLIP_PROCESSOR = {"size": {"shortest_edge": 32}, "crop_size": {"height": 32, "width": 32}}
SIGLIP_PROCESSOR = {"size": {"height": 32, "width": 32}}


def clip(folder: Path) -> None:
    CLIPVisionModelWithProjection(CLIPVisionConfig(**VISION, projection_dim=24)).save_pretrained(folder)
    CLIPImageProcessor(**CLIP_PROCESSOR).save_pretrained(folder)


def whole_clip(folder: Path) -> None:
    config = CLIPConfig(text_config=TEXT, vision_config=VISION | {"projection_dim": 24}, projection_dim=24)
    CLIPModel(config).save_pretrained(folder)
    CLIPImageProcessor(**CLIP_PROCESSOR).save_pretrained(folder)


def siglip(folder: Path) -> None:
    SiglipVisionModel(SiglipVisionConfig(**VISION)).save_pretrained(folder)
    SiglipImageProcessor(**SIGLIP_PROCESSOR).save_pretrained(folder)


def whole_siglip(folder: Path) -> None:
    SiglipModel(SiglipConfig(text_config=TEXT, vision_config=VISION)).save_pretrained(folder)
    SiglipImageProcessor(**SIGLIP_PROCESSOR).save_pretrained(folder)


KINDS = {"clip": clip, "whole_clip": whole_clip, "siglip": siglip, "whole_siglip": whole_siglip}


@pytest.fixture(params=KINDS)
def saved(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """Return a folder with a small random vision tower, or a whole model with one."""
    torch.manual_seed(0)
    KINDS[request.param](tmp_path / request.param)
    return tmp_path / request.param


def photographs(height: int, width: int) -> list[Image.Image]:
    """Return smooth coloured images of whole numbers."""
    coarse = numpy_generator("photographs").integers(0, 256, (2, 5, 5, 3)).astype(np.uint8)
    return [Image.fromarray(each).resize((width, height), Image.Resampling.BICUBIC) for each in coarse]


def to_pixels(images: list[Image.Image]) -> Tensor:
    return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).float() / 127.5 - 1


def processor_of(folder: Path) -> Callable[..., dict[str, Tensor]]:
    kind = CLIPImageProcessor if "clip" in folder.name else SiglipImageProcessor
    return kind.from_pretrained(folder)


@torch.no_grad()
def test_embeddings_are_those_of_transformers(saved: Path) -> None:
    encoder, images = load_image_encoder(str(saved)), photographs(32, 32)
    inputs = processor_of(saved)(images=images, return_tensors="pt")
    if saved.name == "clip":
        expected = CLIPVisionModelWithProjection.from_pretrained(saved)(**inputs).image_embeds
    elif saved.name == "whole_clip":
        expected = CLIPModel.from_pretrained(saved).get_image_features(**inputs).pooler_output
    elif saved.name == "siglip":
        expected = SiglipVisionModel.from_pretrained(saved)(**inputs).pooler_output
    else:
        expected = SiglipModel.from_pretrained(saved).get_image_features(**inputs).pooler_output
    pooled = encoder.pooled(to_pixels(images))
    assert pooled.shape == (2, encoder.pooled_width)
    torch.testing.assert_close(pooled, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("size", [(32, 32), (64, 64), (48, 80), (90, 50), (16, 16)])
def test_images_of_any_size_are_prepared_as_by_transformers(saved: Path, size: tuple[int, int]) -> None:
    if saved.name.startswith("whole"):
        pytest.skip("the same preprocessing")
    encoder, images = load_image_encoder(str(saved)), photographs(*size)
    expected = processor_of(saved)(images=images, return_tensors="pt")["pixel_values"]
    assert encoder.preprocessing is not None
    prepared = encoder.preprocessing(to_pixels(images))
    assert prepared.shape == expected.shape
    # PIL rounds to whole numbers, 1/255, after resizing; a deviation of 0.26 makes that 0.015.
    assert (prepared - expected).abs().max() < 0.04
    assert (prepared - expected).abs().mean() < 0.008


def test_patches_are_the_tokens_before_the_last_layer(saved: Path) -> None:
    encoder, pixels = load_image_encoder(str(saved)), to_pixels(photographs(32, 32))
    patches = encoder.patches(pixels)
    class_token = 1 if "clip" in saved.name else 0
    assert patches.shape == (2, 16 + class_token, encoder.patch_width)
    assert not patches.requires_grad
    assert encoder.preprocessing is not None
    states = encoder.tower(pixel_values=encoder.preprocessing(pixels), output_hidden_states=True).hidden_states
    assert torch.equal(patches, states[-2])
    assert not torch.equal(patches, states[-1])


def test_embeddings_do_not_depend_on_who_asks() -> None:
    encoder, pixels = image_encoder(), to_pixels(photographs(32, 32))
    encoder.train()
    with torch.autocast("cpu", torch.bfloat16):
        lowered = encoder.pooled(pixels), encoder.patches(pixels)
    for value, expected in zip(lowered, (encoder.pooled(pixels), encoder.patches(pixels)), strict=True):
        assert torch.equal(value, expected)


def test_the_fingerprint_is_that_of_weights_and_preprocessing() -> None:
    encoder = image_encoder()
    assert encoder.fingerprint() == image_encoder().fingerprint() == image_encoder().to(torch.bfloat16).fingerprint()
    assert encoder.fingerprint() != image_encoder(seed=1).fingerprint()
    other = image_encoder()
    assert other.preprocessing is not None
    object.__setattr__(other.preprocessing, "crop", (16, 16))
    assert encoder.fingerprint() != other.fingerprint()


# --- What cannot be loaded.


def test_a_folder_that_lacks_something_is_refused_by_name(tmp_path: Path) -> None:
    clip(tmp_path / "clip")
    for name in ("config.json", "preprocessor_config.json", "model.safetensors"):
        folder = tmp_path / f"without_{name}"
        shutil.copytree(tmp_path / "clip", folder)
        (folder / name).unlink()
        with pytest.raises(
            ImageEncoderError, match=rf"base\.image_encoder\.path=.* lacks {name}\nGive a folder or hub id"
        ):
            load_image_encoder(str(folder))


@pytest.mark.parametrize("path", ["assets/no-such-encoder", "/no/such/folder", "nowhere"])
def test_a_folder_that_is_not_there_is_refused(path: str) -> None:
    with pytest.raises(ImageEncoderError, match=rf"path='{path}': no such folder(.|\n)*pretraining\.image_encoder"):
        load_image_encoder(path)


def test_a_hub_id_that_cannot_be_reached_is_told() -> None:
    with pytest.raises(ImageEncoderError, match=r"cannot load base\.image_encoder\.path='nobody/no-such"):
        load_image_encoder("nobody/no-such-encoder")


def test_a_tower_without_its_projection_is_refused_rather_than_drawn_at_random(tmp_path: Path) -> None:
    CLIPVisionModel(CLIPVisionConfig(**VISION)).save_pretrained(tmp_path)
    CLIPImageProcessor(**CLIP_PROCESSOR).save_pretrained(tmp_path)
    with pytest.raises(ImageEncoderError, match=r"weights of a CLIPVisionModelWithProjection"):
        load_image_encoder(str(tmp_path))


def test_a_filter_that_torch_lacks_is_refused(tmp_path: Path) -> None:
    clip(tmp_path)
    settings = json.loads((tmp_path / "preprocessor_config.json").read_text())
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(settings | {"resample": 1}))
    with pytest.raises(ImageEncoderError, match="resample=1"):
        load_image_encoder(str(tmp_path))


def test_on_meta_no_weights_are_read(tmp_path: Path) -> None:
    config = {"model_type": "siglip_vision_model", **VISION}
    encoder = load_image_encoder("nobody/no-such-encoder", initialise="meta", config=config)
    assert {parameter.device.type for parameter in encoder.parameters()} == {"meta"}
    assert (encoder.pooled_width, encoder.patch_width, encoder.num_heads) == (32, 32, 2)
    with pytest.raises(ImageEncoderError, match="preprocessing"):
        encoder.pooled(torch.zeros(1, 3, 32, 32))
    clip(tmp_path)
    assert load_image_encoder(str(tmp_path), initialise="meta").pooled_width == 24


# --- The shipped one.


@pytest.mark.image_encoder
def test_the_shipped_encoder_is_small_and_half_precision() -> None:
    assert sum(file.stat().st_size for file in SHIPPED.iterdir()) < 1.6e6
    assert json.loads((SHIPPED / "config.json").read_text())["dtype"] == "float16"
    encoder = load_image_encoder(str(SHIPPED))
    pixels = draw_images(numpy_generator("shipped"), 2).pixels
    assert encoder.preprocessing is not None
    torch.testing.assert_close(encoder.preprocessing(pixels), pixels, atol=1e-6, rtol=0)


@pytest.mark.image_encoder
@pytest.mark.long
def test_the_shipped_embeddings_tell_held_out_identities() -> None:
    encoder = load_image_encoder(str(SHIPPED))
    training = draw_images(numpy_generator("probe", "training"), 2500)
    asked = draw_images(numpy_generator("probe", "held out"), 400, held_out=True)
    seen, shown = (torch.cat([encoder.pooled(some) for some in each.pixels.split(100)]) for each in (training, asked))
    inputs, tested = (torch.nn.functional.pad(each, (0, 1), value=1.0) for each in (seen, shown))
    for index, (name, words) in enumerate(Identity.vocabulary.items()):
        # A linear probe of its own: least squares on one-hot values.
        wanted = torch.nn.functional.one_hot(training.labels[:, index], len(words)).float()
        weights = torch.linalg.lstsq(inputs, wanted).solution
        share = ((tested @ weights).argmax(-1) == asked.labels[:, index]).double().mean().item()
        assert share > 0.9, f"{name}: {share:.3f}"
