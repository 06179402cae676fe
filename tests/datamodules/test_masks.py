"""A subject's mask is packed with its pair, cropped with its target, encoded as small as its latents, and weights the loss."""

from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from support.commands import compose_train, tiny
from support.data.data_sources import batches, opened, pairs_of, shards_of

from datamodules.base import PairData
from datamodules.commands.encode_shards import encode_shards
from datamodules.identity import IdentityPairs
from dsd_lightning.objective import weights_of_mask
from dsd_lightning.packing.__main__ import main as pack
from dsd_lightning.shards import PairShards
from dsd_lightning.training.build import build_module

SIDE = 96
MASKED = "masked"
RED = 200


def image_and_mask(seed: int) -> tuple[Image.Image, Image.Image]:
    """Return blue noise with a red square somewhere, and a mask of the square."""
    rng = np.random.default_rng(seed)
    values = rng.integers(0, 60, (SIDE, SIDE + 32, 3), dtype=np.uint8)
    values[..., 2] += 180
    mask = np.zeros(values.shape[:2], np.uint8)
    top, left = rng.integers(0, SIDE - 40, 2)
    values[top : top + 40, left : left + 40] = (255, 0, 0)
    mask[top : top + 40, left : left + 40] = 255
    return Image.fromarray(values), Image.fromarray(mask)


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """Return a folder of five images of one subject with captions; two have masks in the folder beside it."""
    folder, masks = tmp_path / "images", tmp_path / "masks"
    folder.mkdir()
    masks.mkdir()
    for number in range(5):
        image, mask = image_and_mask(number)
        name = f"{MASKED if number < 2 else 'plain'}-{number}"
        image.save(folder / f"{name}.png")
        (folder / f"{name}.txt").write_text(f"this character, {number}")
        if number < 2:
            mask.save(masks / f"{name}.png")
    return folder


@pytest.fixture
def shards(images: Path, tmp_path: Path) -> Path:
    out = tmp_path / "shards"
    assert pack([str(images), str(out), "--all-pairs", "--mask-dir", str(tmp_path / "masks"), "--workers", "1"]) == 0
    return out


def test_masks_of_a_folder_are_packed_with_their_targets_and_lost_ones_refused(
    images: Path, shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pairs = list(PairShards(shards, verify="sha256"))
    assert len(pairs) == 20
    for pair in pairs:
        assert (pair.mask is not None) == pair.key.startswith(MASKED)
        if pair.mask is not None:
            red = np.asarray(pair.target)[..., 0] > RED
            assert np.array_equal(np.asarray(pair.mask)[..., 0] > RED, red)
    masks = tmp_path / "masks"
    with_masks = [str(images), str(tmp_path / "again"), "--all-pairs", "--mask-dir", str(masks)]
    image_and_mask(9)[1].save(masks / "nobody.png")
    assert pack(with_masks) == 2
    assert "nobody.png has no image 'nobody'" in capsys.readouterr().err
    (masks / "nobody.png").unlink()
    image_and_mask(0)[1].resize((SIDE, SIDE)).save(masks / f"{MASKED}-0.png")
    assert pack(with_masks) == 2
    assert "its mask has (96, 96) pixels" in capsys.readouterr().err
    assert pack([str(images), str(tmp_path / "again"), "--all-pairs", "--mask-dir", str(images)]) == 2
    assert "move them out of it" in capsys.readouterr().err


def test_a_tables_column_names_masks_and_may_be_empty(images: Path, tmp_path: Path) -> None:
    with (tmp_path / "pairs.csv").open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["image", "reference", "caption", "mask"])
        rows.writerow([f"images/{MASKED}-0.png", "images/plain-2.png", "a", f"masks/{MASKED}-0.png"])
        rows.writerow(["images/plain-2.png", f"images/{MASKED}-0.png", "b", ""])
    assert pack([str(tmp_path / "pairs.csv"), str(tmp_path / "out"), "--workers", "1"]) == 0
    assert [pair.mask is not None for pair in PairShards(tmp_path / "out")] == [True, False]


def test_a_mask_is_cropped_with_its_target_and_is_one_where_there_is_none(shards: Path) -> None:
    data = opened(pairs_of(shards_of(shards, validation_pairs=0, resolution=(48, 48)), batch_size=20), steps=2)
    for batch in batches(data):
        assert batch.mask is not None
        assert batch.target is not None
        for key, mask, target in zip(batch.keys, batch.mask, batch.target, strict=True):
            if key.startswith(MASKED):
                red = (target[0] - target[2]).clamp(-1, 1)
                assert float((mask[0] - (red > 0).float()).abs().mean()) < 0.03
            else:
                assert bool((mask == 1).all())


def test_the_loss_is_weighted_as_defined_and_without_masks_not_a_bit_changes(
    shards: Path, tiny_base: Path, tmp_path: Path
) -> None:
    module = build_module(compose_train(tmp_path / "run", *tiny(tiny_base)))
    assert module.task.background_weight == 0.3
    [batch] = batches(opened(pairs_of(shards_of(shards, validation_pairs=0), batch_size=4), steps=1))
    assert batch.mask is not None
    with torch.no_grad():
        weighted = module.losses(batch)
        plain = module.losses(replace(batch, mask=None))
        module.task = replace(module.task, background_weight=1.0)
        ignored = module.losses(batch)
        module.task = replace(module.task, background_weight=0.3)
        unmasked = module.losses(replace(batch, mask=torch.ones_like(batch.mask)))
    assert torch.equal(ignored.total, plain.total)
    assert torch.equal(weighted.frames["reference"], plain.frames["reference"])
    torch.testing.assert_close(unmasked.total, plain.total)
    masked = torch.tensor([key.startswith(MASKED) for key in batch.keys])
    torch.testing.assert_close(weighted.frames["target"][~masked], plain.frames["target"][~masked])
    assert (
        not torch.isclose(weighted.frames["target"][masked], plain.frames["target"][masked]).any() or not masked.any()
    )


def test_the_weights_are_the_masks_share_of_a_latent_pixel() -> None:
    mask = torch.zeros(1, 1, 16, 32)
    mask[..., :8, :16] = 1
    mask[..., 8:, 16:20] = 1
    weights = weights_of_mask(mask, (2, 4), 0.2)
    torch.testing.assert_close(weights[0, 0], torch.tensor([[1.0, 1.0, 0.2, 0.2], [0.2, 0.2, 0.6, 0.2]]))
    assert torch.equal(weights_of_mask(weights, (2, 4), 0.2), 0.2 + 0.8 * weights)  # latents as they are


def test_encoded_shards_keep_the_mask_as_small_as_the_latents(shards: Path, tiny_base: Path, tmp_path: Path) -> None:
    out = tmp_path / "encoded"
    given = [f"base.model.path={tiny_base}", f"root={shards}", f"out={out}", "workers=0", "batch_size=3"]
    encode_shards(compose_train(out, *given, name="encode_shards"))
    module = build_module(compose_train(tmp_path / "run", *tiny(tiny_base)))
    settings = {"validation_pairs": 0, "crop": "center"}

    def samples(root: Path, encoded: bool) -> PairData:
        data = IdentityPairs(module.task, shards_of(root, **settings, encoded=encoded), 4, seed=0)
        data.trainer = SimpleNamespace(lightning_module=module, received_sigterm=False)  # type: ignore[assignment]
        return data

    stored = samples(out, True).source.training(samples(out, True))
    from_images = samples(shards, False).source.training(samples(shards, False))
    kept = {sample.key: sample for sample in (stored[0, index] for index in range(len(stored)))}
    for index in range(len(from_images)):
        sample = from_images[0, index]
        small = kept[sample.key].mask
        latent = module.architecture.split(kept[sample.key].encoded.clean)["target"]
        assert small is None or small.shape[-2:] == latent.shape[-2:]
        if sample.mask is None:
            assert small is None or bool((small == 1).all())
        else:
            expected = weights_of_mask(sample.mask[None], tuple(latent.shape[-2:]), 0.3)
            torch.testing.assert_close(weights_of_mask(small[None], tuple(latent.shape[-2:]), 0.3), expected)
