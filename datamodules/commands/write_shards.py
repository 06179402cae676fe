"""Writes pairs of the miniature world as shards: `python -m datamodules.commands.write_shards task=identity out=FOLDER`."""

from __future__ import annotations

import logging
import sys
from pathlib import Path
from typing import TYPE_CHECKING, cast

import hydra
from hydra.utils import instantiate
from omegaconf import DictConfig
from tqdm import tqdm

from dsd_lightning.cli.errors import run_command
from dsd_lightning.cli.settings import check_settings
from dsd_lightning.shards import ShardError, ShardIndex, ShardWriter

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor

log = logging.getLogger(__name__)

SPLITS = ("training", "validation", "probe")
"""The pairs of `data=miniature` for training, for validation, and for metrics and sheets."""


def write_shards(config: DictConfig) -> ShardIndex:
    """Write the pairs that `conf/write_shards.yaml` asks for and return the index of the set.

    The set appears at the end, atomically; a failure or Ctrl-C leaves nothing. Images are stored with 8 bits a channel, depth
    maps as gray of 16 bits.

    Raises:
        SettingError: a value that cannot be meant.
        ValueError: an invalid split, or a task that the miniature world has no pairs of.
        ShardError: `out` is no folder, or holds anything already.
    """
    from datamodules.base import PairData
    from datamodules.sources.miniature import Miniature, MiniaturePairs
    from dsd_lightning.images.pixels import is_gray, to_gray16, to_image
    from dsd_lightning.miniature.renderer import RESOLUTION

    check_settings(config)
    if config.split not in SPLITS:
        raise ValueError(f"split={config.split!r} is unknown; choose {', '.join(SPLITS)}")
    if config.image_format not in ("webp", "png"):
        raise ValueError(f"image_format={config.image_format!r} is unknown; choose webp or png (both lossless)")
    out = Path(config.out)
    if out.exists() and not out.is_dir():
        raise ShardError(f"out={out} is a file; give a new or empty folder")
    if out.is_dir() and any(out.iterdir()):
        raise ShardError(f"out={out} is not empty; give a new or empty folder")
    source = Miniature(pairs=config.count, validation_pairs=0, seed=config.seed, pool=False)
    data = cast(
        PairData,
        instantiate(
            {"_target_": config.task.datamodule, "batch_size": 1, "seed": config.seed},
            task=instantiate(config.task.relation),
            source=source,
        ),
    )
    pairs = MiniaturePairs(data, config.count, config.seed, config.split, config.identities)

    def stored(pixels: Tensor) -> Image:
        return to_gray16(pixels) if is_gray(pixels) else to_image(pixels)

    provenance = {"source": "miniature", "split": config.split, "seed": config.seed}
    with ShardWriter(
        out,
        task=data.task.name,
        resolution=RESOLUTION,
        max_bytes=config.max_bytes,
        image_format=config.image_format,
    ) as writer:
        for index in tqdm(range(config.count), desc="writing pairs", unit="pair", disable=not sys.stderr.isatty()):
            pair = pairs[index]
            writer.write(
                pair.key,
                None if pair.reference is None else stored(pair.reference),
                stored(pair.target),
                pair.caption,
                pair.instruction,
                provenance,
                pair.facts,
            )
    written = ShardIndex.read(out)
    assert written is not None
    log.info(
        "%s: %d pairs in %d tars; train from them with task=%s data=shards data.root=%s",
        out,
        written.samples,
        len(written.shards),
        data.task.name,
        out,
    )
    return written


@hydra.main(config_path="../../conf", config_name="write_shards", version_base="1.3")
def main(config: DictConfig) -> None:
    """Run the command."""
    write_shards(config)


if __name__ == "__main__":
    run_command(main)
