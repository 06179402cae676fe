"""Measures how many pairs a second are read: stored encodings, images, and images through plain webdataset.

python -m benchmarks.loader [--size 512] [--pairs 32] [--workers 0] [--rounds 7] [--out FILE.json]

Writes photographs of scikit-image as pair shards, encodes them with the miniature's VAE and text encoders, and reads whole
epochs of batches: by our loader from encodings, by our loader from images, and by webdataset's own decoding with a crop of
the same size. Everything is in the page cache, so decoding is what is compared, and not the disk.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import webdataset
from hydra import compose, initialize_config_dir
from PIL import Image
from skimage import data as photographs
from torch.utils.data import DataLoader

from benchmarks.measure import facts, interleaved, ratio, spread, write
from datamodules.base import PairData
from datamodules.commands.encode_shards import encode_shards
from datamodules.identity import IdentityPairs
from datamodules.sources.shards import Shards
from dsd_lightning.images.pixels import to_pixels
from dsd_lightning.module import DiffusionSelfDistillation
from dsd_lightning.pairs import Task
from dsd_lightning.runs.resolvers import register_resolvers
from dsd_lightning.shards import ShardWriter
from dsd_lightning.training.build import build_module

IMAGES = ("astronaut", "cat", "coffee", "rocket")
CONF = Path(__file__).parents[1] / "conf"


def write_images(root: Path, size: int, count: int) -> None:
    """Write `count` pairs of photographs with a short side of `size` pixels."""
    images = [Image.fromarray(getattr(photographs, name)()).convert("RGB") for name in IMAGES]
    scaled = []
    for image in images:
        factor = size / min(image.size)
        scaled.append(image.resize((max(size, round(image.width * factor)), max(size, round(image.height * factor)))))
    with ShardWriter(root, task="identity", resolution=size) as writer:
        for number in range(count):
            target, reference = scaled[number % len(scaled)], scaled[(number + 1) % len(scaled)]
            writer.write(f"pair-{number:05d}", reference, target, f"a photograph, number {number}")


def configuration(name: str, *overrides: str) -> Any:
    """Return a command's configuration."""
    register_resolvers()
    with initialize_config_dir(config_dir=str(CONF), version_base="1.3"):
        return compose(name, list(overrides))


def loaded(root: Path, size: int, batch: int, workers: int, module: DiffusionSelfDistillation, encoded: bool) -> Any:
    """Return a turn: one epoch of batches through the training loader."""
    source = Shards(
        str(root),
        resolution=(size, size),
        buckets=None,
        validation_pairs=0,
        crop="center",
        workers=workers,
        max_damaged=0,
        verify="size",
        encoded=encoded,
    )
    data: PairData = IdentityPairs(Task("identity", False, {"reference": 0.25, "target": 1.0}), source, batch, seed=0)

    def turn() -> None:
        steps = len(data._training) // batch
        data.trainer = SimpleNamespace(  # type: ignore[assignment]
            max_steps=steps,
            accumulate_grad_batches=1,
            world_size=1,
            global_rank=0,
            lightning_module=module,
            received_sigterm=False,
            strategy=SimpleNamespace(root_device=torch.device("cpu")),
        )
        read = sum(len(data.on_before_batch_transfer(each, 0)) for each in data.train_dataloader())
        assert read == steps * batch

    data.trainer = SimpleNamespace(lightning_module=module, received_sigterm=False)  # type: ignore[assignment]
    data._open()
    return turn


def plain_webdataset(root: Path, size: int, batch: int, workers: int) -> Callable[[], None]:
    """Return a turn: one epoch of the same images by webdataset's own decoding."""

    def pixels(sample: dict[str, Any]) -> tuple[Any, Any, str]:
        images = [to_pixels(sample[f"{frame}.webp"], size, size) for frame in ("reference", "target")]
        return images[0], images[1], sample["json"]["caption"]

    urls = [str(path) for path in sorted(root.glob("*.tar"))]

    def turn() -> None:
        dataset = webdataset.WebDataset(urls, shardshuffle=False, empty_check=False).decode("pil").map(pixels)
        for _ in DataLoader(dataset, batch_size=batch, num_workers=workers):
            pass

    return turn


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, and tell the ratios with their intervals."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.loader", description=__doc__)
    parser.add_argument("--size", type=int, default=512, help="side of a frame, pixels")
    parser.add_argument("--pairs", type=int, default=32)
    parser.add_argument("--batch", type=int, default=8, help="pairs")
    parser.add_argument("--workers", type=int, default=0, help="processes that read ahead")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as scratch:
        images, encoded = Path(scratch) / "images", Path(scratch) / "encoded"
        write_images(images, args.size, args.pairs)
        frame = f"resolution=[{args.size},{args.size}]"
        encode_shards(configuration("encode_shards", f"root={images}", f"out={encoded}", frame, "workers=0"))
        module = build_module(configuration("train", "compile=false"))
        turns = {
            "encodings": loaded(encoded, args.size, args.batch, args.workers, module, encoded=True),
            "images": loaded(images, args.size, args.batch, args.workers, module, encoded=False),
            "webdataset": plain_webdataset(images, args.size, args.batch, args.workers),
        }
        taken = interleaved(turns, args.rounds, torch.device("cpu"))
        stored = sum(file.stat().st_size for file in encoded.glob("*.tar"))
    results = {
        "what": "an epoch of batches of pairs, read by the training loader from stored encodings and from images, and by "
        "webdataset from the same images",
        "settings": {key: value for key, value in vars(args).items() if key != "out"},
        **facts(torch.device("cpu")),
        "pairs_a_second": {name: args.pairs / spread(each)["median"] for name, each in taken.items()},
        "seconds_an_epoch": {name: spread(each) for name, each in taken.items()},
        "encodings_over_images": ratio(taken["encodings"], taken["images"]),
        "images_over_webdataset": ratio(taken["images"], taken["webdataset"]),
        "bytes_a_pair_with_encodings": stored / args.pairs,
    }
    write(args.out, results)


if __name__ == "__main__":
    main()
