"""Pair shards for tests: written sets, foreign tars, and the comparison of two samples."""

from __future__ import annotations

import io
import json
import random
import tarfile
from pathlib import Path

import numpy as np
from PIL import Image
from skimage import data

from dsd_lightning.shards import RawPair, ShardWriter
from dsd_lightning.shards.writer import encode_image

PHOTOGRAPHS = tuple(Image.fromarray(read()) for read in (data.astronaut, data.coffee, data.chelsea, data.rocket))


def patch(number: int, size: int = 48) -> Image.Image:
    """Return a piece of a photograph, another for every number."""
    photograph = PHOTOGRAPHS[number % len(PHOTOGRAPHS)]
    left, top = random.Random(number).randrange(200), random.Random(-number).randrange(200)
    return photograph.crop((left, top, left + size, top + size + number % 3))


def write_set(root: Path, count: int = 7, **options: object) -> Path:
    options = {"task": "identity", "resolution": 48, "max_bytes": 30_000} | options
    with ShardWriter(root, **options) as writer:
        for number in range(count):
            writer.write(
                f"pair-{number}",
                patch(2 * number),
                patch(2 * number + 1),
                f"this thing, número {number}",
                instruction="move it" if number % 2 else None,
                provenance={"photograph": number},
                facts={"shape": number},
            )
    return root


def add_tar(path: Path, members: dict[str, bytes]) -> None:
    with tarfile.open(path, "w") as tar:
        for name, content in members.items():
            header = tarfile.TarInfo(name)
            header.size = len(content)
            tar.addfile(header, io.BytesIO(content))


def plain_sample(key: str, number: int = 0) -> dict[str, bytes]:
    image = encode_image(patch(number), "png")
    return {
        f"{key}.reference.png": image,
        f"{key}.target.png": image,
        f"{key}.json": json.dumps({"caption": "a thing"}).encode(),
    }


def same(one: RawPair, other: RawPair) -> bool:
    images = all(
        np.array_equal(np.asarray(a), np.asarray(b))
        for a, b in ((one.reference, other.reference), (one.target, other.target))
    )
    return images and one.caption == other.caption and one.key == other.key
