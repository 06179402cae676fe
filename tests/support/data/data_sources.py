"""Shards of real photographs, and datamodules as a trainer would set them up, for tests of data sources."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import torch
from PIL import Image
from skimage import data as photographs

from datamodules.base import PairData
from datamodules.identity import IdentityPairs
from datamodules.sources.miniature import Miniature
from datamodules.sources.shards import Shards
from dsd_lightning.module import DiffusionSelfDistillation
from dsd_lightning.pairs import PairBatch, Task
from dsd_lightning.shards import ShardWriter

PHOTOGRAPHS = ("astronaut", "cat", "coffee", "rocket", "hubble_deep_field", "color")
"""Real photographs of several sizes and aspect ratios that scikit-image brings along, and their first letters' keys."""


def photograph(name: str, long_side: int = 200) -> Image.Image:
    """Return a photograph, shrunk so that tests are quick."""
    pixels = photographs.data_dir  # the folder, for those without a function of their own
    image = Image.open(Path(pixels) / "color.png") if name == "color" else Image.fromarray(getattr(photographs, name)())
    image = image.convert("RGB")
    image.thumbnail((long_side, long_side))
    return image


def write_photographs(root: Path) -> Path:
    """Write shards of photographs, each with a mirrored one as its reference, and return where."""
    with ShardWriter(root, task="identity", resolution=None) as writer:
        for number in range(12):
            name = PHOTOGRAPHS[number % len(PHOTOGRAPHS)]
            target = photograph(name, 200 - 4 * number)
            reference = target.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
            writer.write(f"{name}-{number}", reference, target, f"a photograph: {name}")
    return root


def shards_of(root: Path, **changes: object) -> Shards:
    settings: dict[str, object] = {
        "root": str(root),
        "resolution": (64, 64),
        "buckets": None,
        "validation_pairs": 3,
        "crop": "random",
        "workers": 0,
        "max_damaged": 0,
        "verify": "size",
    }
    return Shards(**(settings | changes))  # type: ignore[arg-type]


def identity_task(aligned: bool = False) -> Task:
    return Task("identity", aligned, {"reference": 0.5, "target": 1.0})


def opened(
    data: PairData, steps: int = 6, module: DiffusionSelfDistillation | None = None, accumulate: int = 1
) -> PairData:
    """Return the datamodule as a trainer of `steps` optimizer steps would set it up."""
    data.trainer = SimpleNamespace(  # type: ignore[assignment]
        max_steps=steps,
        accumulate_grad_batches=accumulate,
        world_size=1,
        global_rank=0,
        lightning_module=module,
        received_sigterm=False,
        strategy=SimpleNamespace(root_device=torch.device("cpu")),
    )
    data.setup("fit")
    return data


def pairs_of(source: Shards | Miniature, aligned: bool = False, batch_size: int = 4) -> PairData:
    return IdentityPairs(identity_task(aligned), source, batch_size, seed=0)


def batches(data: PairData) -> list[PairBatch]:
    return [data.on_before_batch_transfer(batch, 0) for batch in data.train_dataloader()]


def same(left: PairBatch, right: PairBatch) -> bool:
    assert left.target is not None
    assert right.target is not None
    return (
        (left.keys, left.epochs, left.prompts) == (right.keys, right.epochs, right.prompts)
        and torch.equal(left.target, right.target)
        and torch.equal(left.reference, right.reference)  # type: ignore[arg-type]
    )
