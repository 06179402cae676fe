"""Shows the similarities of copies, unrelated images and stories, and that encoders are loaded and run."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from PIL import Image
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

from dsd_lightning.evaluation.errors import EvaluationError
from dsd_lightning.evaluation.samples.benchmark import folder
from dsd_lightning.evaluation.samples.result_folder import Samples
from dsd_lightning.evaluation.similarity.encoders import Clip, Dino, Pixels, prepared
from dsd_lightning.evaluation.similarity.measures import consistency, measure, story

TINY = Path(__file__).parents[2] / "assets" / "tiny-flux"


def noise(seed: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (40, 48, 3), dtype=np.uint8))


@pytest.fixture
def world(tmp_path: Path) -> Path:
    for number in range(3):
        file = tmp_path / "benchmark" / f"{number}.png"
        file.parent.mkdir(exist_ok=True)
        noise(number).save(file)
        file.with_suffix(".txt").write_text("on the moon\nin a hat")
    return tmp_path


def measured(world: Path, name: str, copies: bool) -> dict[str, float]:
    samples = Samples(world / name)
    cases = folder(world / "benchmark").cases()
    for number, case in enumerate(cases):
        reference = Image.open(case.subject.reference)
        samples.write(case, reference if copies else noise(100 + number), reference)
    metrics = measure(samples, cases, [Pixels()])
    assert all((metric.images, metric.missing) == (6, 0) for metric in metrics)
    assert {metric.subjects for metric in metrics} == {3}
    return {metric.name: metric.value for metric in metrics}


def test_copies_score_full_copying_and_no_diversity_and_strangers_the_reverse(world: Path) -> None:
    copies, strangers = measured(world, "copies", True), measured(world, "strangers", False)
    assert copies["pixel correlation"] == pytest.approx(1, abs=0.05)
    assert copies["copying, pixel correlation"] == pytest.approx(1, abs=0.1)
    assert copies["diversity, pixel correlation"] == pytest.approx(0, abs=0.01)
    assert strangers["copying, pixel correlation"] == pytest.approx(0, abs=0.1)
    assert strangers["diversity, pixel correlation"] == pytest.approx(1, abs=0.1)


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return small random models in the layout of the hub's."""
    root = tmp_path_factory.mktemp("weights")
    tokenizer = AutoTokenizer.from_pretrained(TINY / "tokenizer")
    small = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        vision = CLIPVisionConfig(**small, image_size=32, patch_size=16)
        text = CLIPTextConfig(
            **small,
            vocab_size=len(tokenizer),
            max_position_embeddings=16,
            eos_token_id=tokenizer.eos_token_id,
            bos_token_id=tokenizer.bos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
        config = CLIPConfig(text_config=text.to_dict(), vision_config=vision.to_dict(), projection_dim=8)
        CLIPModel(config).save_pretrained(root / "clip")
        ViTModel(ViTConfig(**small, image_size=28, patch_size=14)).save_pretrained(root / "dino")
        small.pop("intermediate_size")
        Dinov2Model(Dinov2Config(**small, image_size=28, patch_size=14)).save_pretrained(root / "dinov2")
    tokenizer.save_pretrained(root / "clip")
    return root


def test_clip_and_dino_give_unit_vectors_whatever_the_batch(weights: Path) -> None:
    images = [noise(seed) for seed in range(5)]
    for encoder in (Clip(str(weights / "clip")), Dino(str(weights / "dino"), side=28)):
        vectors = encoder.images(images)
        assert torch.allclose(vectors.norm(dim=1), torch.ones(5), atol=1e-5)
        encoder.batch_size = 2
        assert torch.allclose(encoder.images(images), vectors, atol=1e-5)
        assert not torch.allclose(vectors[0], vectors[1], atol=1e-4)


def test_metrics_are_named_with_their_backbones(world: Path, weights: Path) -> None:
    measured(world, "strangers", False)
    encoders = [Clip(str(weights / "clip")), Dino(str(weights / "dinov2"), "DINOv2", side=28)]
    metrics = measure(Samples(world / "strangers"), folder(world / "benchmark").cases(), encoders)
    assert {each.name for each in metrics} >= {"CLIP-I", "CLIP-T", "DINOv2"}
    assert all(str(weights) in each.backbone and -1 <= each.value <= 2 for each in metrics)


def test_missing_weights_are_named(tmp_path: Path) -> None:
    with pytest.raises(EvaluationError, match="nowhere: the weights cannot be loaded"):
        Clip(str(tmp_path / "nowhere"))


def test_images_are_cropped_to_their_centre() -> None:
    image = Image.new("RGB", (64, 32))
    image.paste((255, 255, 255), (16, 0, 48, 32))
    prepared_image = prepared(image, 32, 32, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
    assert prepared_image.shape == (3, 32, 32)
    assert torch.equal(prepared_image, torch.ones(3, 32, 32))


def test_panels_are_compared_in_natural_order_without_references_and_hidden_files(tmp_path: Path) -> None:
    for name, seed in {"2.png": 1, "10.PNG": 2, "hero.png": 3}.items():
        noise(seed).save(tmp_path / name, "PNG")
    (tmp_path / "._2.png").write_bytes(b"not an image")
    config = {"panels": str(tmp_path), "references": [str(tmp_path / "hero.png")], "use": [], "encoders": {}}
    assert "(N=2)" in story(OmegaConf.create(config))


@pytest.mark.parametrize("colors", [((90, 90, 90), (90, 90, 90)), ((200, 10, 10), (200, 10, 10))])
def test_two_equal_panels_of_one_colour_are_alike(colors: tuple[tuple[int, int, int], ...], tmp_path: Path) -> None:
    for number, color in enumerate(colors):
        Image.new("RGB", (40, 40), color).save(tmp_path / f"{number}.png")
    noise(1).save(tmp_path / "reference.png")
    panels = [tmp_path / "0.png", tmp_path / "1.png"]
    measured = consistency(panels, [tmp_path / "reference.png"], Pixels())
    assert (measured.self_similarity, measured.neighbours) == pytest.approx((1, 1), abs=1e-5)
    assert measured.cross_similarity == pytest.approx(0, abs=0.3)


def test_a_story_of_one_image_is_fully_consistent(tmp_path: Path) -> None:
    for number, seed in enumerate((1, 1, 1, 2)):
        noise(seed).save(tmp_path / f"{number}.png")
    panels = sorted(tmp_path.glob("*.png"))
    same = consistency(panels[:3], panels[:1], Pixels())
    assert (same.self_similarity, same.neighbours, same.cross_similarity) == pytest.approx((1, 1, 1), abs=1e-5)
    mixed = consistency(panels, panels[:1], Pixels())
    assert mixed.self_similarity < 0.7
    assert mixed.neighbours > mixed.self_similarity
    with pytest.raises(EvaluationError, match="at least 2"):
        consistency(panels[:1], [], Pixels())
