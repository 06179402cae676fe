"""The depth command makes aligned pairs of real photographs with a real model's code, and loses nothing to a kill."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from skimage import data as photographs
from support.commands import SOURCE, command, compose_train, environment, tiny
from support.processes import prepared
from transformers import AutoImageProcessor, DepthAnythingConfig, DepthAnythingForDepthEstimation, Dinov2Config

from dsd_lightning.cli.errors import message_for_user
from dsd_lightning.images.pixels import ImageError, load_image, to_pixels
from dsd_lightning.packing.depth import DepthEstimator, DepthMaps, normalised
from dsd_lightning.packing.depth_command import write_depth
from dsd_lightning.shards import PairShards, ShardWriter
from dsd_lightning.training.run import train

NAMES = ("astronaut", "cat", "coffee", "rocket")
MODULE = ("-m", "dsd_lightning.packing.depth_command")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a small Depth Anything of random weights and its preprocessing, laid out as on the hub."""
    folder = tmp_path_factory.mktemp("depth") / "model"
    backbone = Dinov2Config(
        hidden_size=32,
        num_hidden_layers=4,
        num_attention_heads=2,
        image_size=56,
        patch_size=14,
        out_indices=[1, 2, 3, 4],
        reshape_hidden_states=False,
    )
    config = DepthAnythingConfig(
        backbone_config=backbone,
        patch_size=14,
        reassemble_hidden_size=32,
        neck_hidden_sizes=[8, 8, 8, 8],
        fusion_hidden_size=8,
        head_hidden_size=8,
    )
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(0)
        network = DepthAnythingForDepthEstimation(config)
        for parameter in network.parameters():
            if parameter.ndim > 1:
                parameter.normal_(std=parameter[0].numel() ** -0.5)
        # Its last activation cuts negative values off; an image should not become all zeros.
        network.head.conv3.bias.fill_(6.0)
        network.save_pretrained(folder)
    preprocessing = {
        "image_processor_type": "DPTImageProcessor",
        "do_resize": True,
        "size": {"height": 56, "width": 56},
        "keep_aspect_ratio": True,
        "ensure_multiple_of": 14,
        "resample": 3,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": [0.485, 0.456, 0.406],
        "image_std": [0.229, 0.224, 0.225],
    }
    (folder / "preprocessor_config.json").write_text(json.dumps(preprocessing))  # as on the hub
    return folder


def photograph(name: str, long_side: int = 120) -> Image.Image:
    image = Image.fromarray(getattr(photographs, name)())
    image.thumbnail((long_side, long_side))
    return image


@pytest.fixture
def images(tmp_path: Path) -> Path:
    folder = tmp_path / "images"
    folder.mkdir()
    (folder / "notes.pdf").touch()
    for name in NAMES:
        photograph(name).save(folder / f"{name}.png")
        (folder / f"{name}.txt").write_text(f"a photograph of {name}")
    return folder


def write(model: Path, source: Path, out: Path, *overrides: str) -> Path:
    arguments = [f"source={source}", f"out={out}", f"estimator.model={model}", "estimator.device=cpu", *overrides]
    return write_depth(compose_train(out, *arguments, name="write_depth"))


def refusal(model: Path, source: Path, out: Path, *overrides: str) -> str:
    with pytest.raises(Exception) as caught:  # noqa: PT011
        write(model, source, out, *overrides)
    message = message_for_user(caught.value)
    assert message is not None, repr(caught.value)
    return message


# --- The pairs.


def test_photographs_become_depth_pairs(model: Path, images: Path, tmp_path: Path) -> None:
    shards = PairShards(write(model, images, tmp_path / "out"), task="depth", require_reference=True)
    assert sorted(shards.keys) == sorted(NAMES)
    estimator = DepthEstimator(str(model), device="cpu")
    for pair in shards:
        assert pair.reference is not None
        assert pair.reference.mode == "I;16"
        assert pair.reference.size == pair.target.size == photograph(pair.key).size
        np.testing.assert_array_equal(np.asarray(pair.target), np.asarray(photograph(pair.key)))
        values = np.asarray(pair.reference)
        assert (values.min(), values.max()) == (0, 65535)
        # 8 bits could not hold as many values.
        assert len(np.unique(values)) > 1000
        np.testing.assert_array_equal(values, np.asarray(estimator(photograph(pair.key))))
        assert pair.caption == f"a photograph of {pair.key}"
        assert pair.instruction is None
        assert pair.provenance["depth_model"] == str(model)
    assert not (tmp_path / "out.maps").exists()


def test_the_estimate_is_the_models_and_near_is_bright(model: Path) -> None:
    image = photograph("coffee")
    network = DepthAnythingForDepthEstimation.from_pretrained(model).eval()
    processor = AutoImageProcessor.from_pretrained(model)
    with torch.inference_mode():
        said = network(**processor(images=image, return_tensors="pt")).predicted_depth
        size = (image.height, image.width)
        said = torch.nn.functional.interpolate(said[:, None], size=size, mode="bicubic")[0, 0].numpy()
    expected = (said - said.min()) / (said.max() - said.min())
    large, small = (DepthEstimator(str(model), device="cpu", near_is=near) for near in ("large", "small"))
    np.testing.assert_allclose(np.asarray(large(image)) / 65535, expected, atol=1e-3)
    assert DepthEstimator(str(model), device="cpu").near_is == "large"
    # Distances are inverted: what was brightest is darkest.
    assert said.min() > 0
    assert np.asarray(small(image)).flat[said.argmax()] == 0
    assert large.fingerprint() != small.fingerprint()


def test_maps_are_stretched_from_black_to_white_and_a_flat_one_is_black() -> None:
    values = np.asarray([[3.0, 5.0], [4.0, 3.5]], dtype=np.float32)
    np.testing.assert_array_equal(np.asarray(normalised(values)), [[0, 65535], [32768, 16384]])
    assert not np.asarray(normalised(np.full((2, 2), 7.0, dtype=np.float32))).any()
    with pytest.raises(ImageError, match="not finite"):
        normalised(np.asarray([[1.0, np.nan]], dtype=np.float32))


def test_targets_of_pair_shards_get_maps_too(model: Path, tmp_path: Path) -> None:
    with ShardWriter(tmp_path / "identity", task="identity", resolution=None) as writer:
        for number, name in enumerate(NAMES):
            image = photograph(name)
            writer.write(f"{name}-{number}", image.rotate(180), image, f"a {name}", "turn it", {"from": name})
    shards = PairShards(write(model, tmp_path / "identity", tmp_path / "out"), task="depth", require_reference=True)
    assert shards.keys == PairShards(tmp_path / "identity").keys
    for pair in shards:
        name = pair.key.partition("-")[0]
        np.testing.assert_array_equal(np.asarray(pair.target), np.asarray(photograph(name)))
        assert (pair.caption, pair.instruction) == (f"a {name}", None)
        assert pair.provenance == {"from": name, "source": pair.key, "depth_model": str(model)}


def test_resolution_shrinks_both_images_alike(model: Path, images: Path, tmp_path: Path) -> None:
    for pair in PairShards(write(model, images, tmp_path / "out", "resolution=64")):
        assert pair.reference is not None
        assert pair.reference.mode == "I;16"
        assert pair.reference.size == pair.target.size
        assert min(pair.target.size) == 64


@pytest.mark.slow
def test_depth_pairs_of_photographs_train(model: Path, images: Path, tiny_base: Path, tmp_path: Path) -> None:
    out = write(model, images, tmp_path / "out")
    overrides = ["task=depth", "data=shards", f"data.root={out}", f"{SOURCE}.workers=0", "trainer.max_steps=2"]
    few = [f"{SOURCE}.validation_pairs=1", "callbacks.probe.samples=1", "callbacks.samples.count=1", "logger=csv"]
    metrics = train(compose_train(tmp_path / "run", *tiny(tiny_base, *overrides, *few)), tmp_path / "run")
    assert {name for name in metrics if name != "seconds_per_pair"} == {
        "reference_psnr",
        "reference_psnr_before",
        "reference_psnr_ceiling",
    }


# --- Going on.


def test_no_map_is_estimated_twice_and_none_is_used_for_another(images: Path, tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []

    def estimate(image: Image.Image) -> Image.Image:
        seen.append(image.size)
        return normalised(np.asarray(image.convert("L"), dtype=np.float32))

    files = [path.read_bytes() for path in sorted(images.glob("*.png"))]
    first = DepthMaps(tmp_path / "maps", estimate)
    maps = [first.make(file) for file in [*files, *files]]
    assert len(seen) == len(set(maps)) == first.estimated == len(files)
    again = DepthMaps(tmp_path / "maps", estimate)
    assert [again.make(file) for file in files] == maps[: len(files)]
    assert (again.estimated, len(seen)) == (0, len(files))
    for file, path in zip(files, maps, strict=False):
        gray = np.asarray(load_image(file).convert("L"), dtype=np.float32)
        np.testing.assert_array_equal(np.asarray(load_image(path)), np.asarray(normalised(gray)))


def test_what_a_kill_leaves_half_written_is_no_map(images: Path, tmp_path: Path) -> None:
    ended = subprocess.Popen(["true"])
    ended.wait()
    (tmp_path / "maps").mkdir()
    (tmp_path / "maps" / f".a.png.{socket.gethostname()}-{ended.pid}-0.partial").write_bytes(b"half")
    maps = DepthMaps(tmp_path / "maps", lambda image: normalised(np.asarray(image.convert("L"), dtype=np.float32)))
    file = (images / "cat.png").read_bytes()
    path = maps.path(file)
    assert load_image(maps.make(file)).mode == "I;16"
    assert [each.name for each in (tmp_path / "maps").iterdir()] == [path.name]


def start(model: Path, source: Path, out: Path) -> prepared.Process:
    arguments = [f"source={source}", f"out={out}", f"estimator.model={model}", "estimator.device=cpu", "keep_maps=true"]
    with (out.parent / f"{out.name}.log").open("ab") as log:
        return prepared.start(command(*arguments, module=MODULE), env=environment(), stdout=log, stderr=log)


@pytest.mark.long
def test_a_killed_command_goes_on_without_estimating_any_finished_map_again(model: Path, tmp_path: Path) -> None:
    images = tmp_path / "images"
    images.mkdir()
    whole = {name: Image.fromarray(getattr(photographs, name)()) for name in NAMES}
    for number in range(40):
        name = NAMES[number % len(NAMES)]
        corner = 3 * number
        whole[name].crop((corner, corner, corner + 280, corner + 180)).save(images / f"{name}{number}.png")
        (images / f"{name}{number}.txt").write_text(f"a piece of {name}")
    write(model, images, tmp_path / "straight", "keep_maps=true")

    out, log = tmp_path / "killed", tmp_path / "killed.log"
    finished: dict[str, tuple[int, int]] = {}
    for wanted in (5, 20):
        process = start(model, images, out)
        while len(list((tmp_path / "killed.maps").glob("*/*.png"))) < wanted:
            assert process.poll() is None, log.read_text()[-3000:]
            time.sleep(0.001)
        process.kill()
        assert process.wait() == -signal.SIGKILL
        assert not (out / "index.json").exists()
        now = {path.name: path.stat() for path in (tmp_path / "killed.maps").glob("*/*.png")}
        assert len(now) < 40
        # The maps of an earlier attempt are the very same files.
        assert all((now[name].st_ino, now[name].st_mtime_ns) == kept for name, kept in finished.items())
        finished = {name: (stat.st_ino, stat.st_mtime_ns) for name, stat in now.items()}
    assert start(model, images, out).wait() == 0, log.read_text()[-3000:]
    after = {path.name: path.stat() for path in (tmp_path / "killed.maps").glob("*/*.png")}
    assert len(after) == 40
    assert all((after[name].st_ino, after[name].st_mtime_ns) == kept for name, kept in finished.items())
    assert f"{40 - len(finished)} maps estimated now" in log.read_text()
    straight, resumed = (json.loads((tmp_path / name / "index.json").read_text()) for name in ("straight", "killed"))
    assert straight == resumed


# --- Refused.


def test_what_cannot_be_paired_is_listed_and_left_out_only_if_allowed(
    model: Path, images: Path, tmp_path: Path
) -> None:
    (images / "rocket.png").write_bytes(b"no image")
    assert "unreadable_target" in refusal(model, images, tmp_path / "out")
    assert len(list((tmp_path / "out.maps").glob("*/*.png"))) == 3, "finished maps survive a refusal"
    (images / "cat.txt").unlink()
    message = refusal(model, images, tmp_path / "out")
    assert "cat.png has no caption" in message
    assert "allow_orphans=true" in message
    assert not (tmp_path / "out").exists()
    out = write(model, images, tmp_path / "out", "allow_orphans=true")
    assert sorted(PairShards(out).keys) == ["astronaut", "coffee"]
    rejections = json.loads((out / "index.json").read_text())["rejections"]
    assert rejections == {"missing_caption": 1, "other_file": 1, "unreadable_target": 1}


def test_bad_arguments_are_refused_by_name(model: Path, images: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "index.json").write_bytes(before := b"{}")
    assert "holds a set of shards already" in refusal(model, images, out)
    assert (out / "index.json").read_bytes() == before
    assert f"there is no {tmp_path / 'nowhere'}" in refusal(model, tmp_path / "nowhere", tmp_path / "new")
    assert "near_is='far'" in refusal(model, images, tmp_path / "new", "estimator.near_is=far")
    (tmp_path / "empty_model").mkdir()
    message = refusal(tmp_path / "empty_model", images, tmp_path / "new")
    assert "empty_model" in message
    assert "Depth-Anything" in message
    assert "cannot be loaded as a depth model" in message
    (tmp_path / "new").mkdir()
    (tmp_path / "new" / "mine.tar").write_bytes(b"something")
    assert "already holds 'mine.tar'" in refusal(model, images, tmp_path / "new")
    assert (tmp_path / "new" / "mine.tar").read_bytes() == b"something"


def test_a_map_has_its_images_pixels_whatever_the_models_patch(model: Path) -> None:
    estimator = DepthEstimator(str(model), device="cpu", short_side=60)
    image = photograph("rocket", 111)
    depth = estimator(image)
    assert depth.size == image.size
    assert to_pixels(depth, image.height, image.width).shape == (3, image.height, image.width)
