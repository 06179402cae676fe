"""Makes depth pairs of images with captions: `python -m dsd_lightning.packing.depth_command source=IMAGES out=FOLDER`."""

from __future__ import annotations

import logging
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import hydra
from hydra.utils import instantiate
from omegaconf import DictConfig

from dsd_lightning.cli.errors import run_command
from dsd_lightning.cli.settings import check_settings

if TYPE_CHECKING:
    from dsd_lightning.packing.candidates import Orphan

log = logging.getLogger(__name__)

TASK = "depth"


def write_depth(config: DictConfig) -> Path:
    """Write the depth pairs that `conf/write_depth.yaml` asks for and return the set's folder.

    Depth maps are estimated one by one into the folder `maps` and stay there until the set is complete, so that the same
    command goes on after a kill. The set itself appears at the end, atomically.

    Raises:
        SettingError: a value that cannot be meant.
        PackingError: no such source or model, a number out of range, or orphans that were not allowed.
        ShardError: `out` holds a set already, or the source's shards cannot be read.
    """
    from dsd_lightning.packing.candidates import PackingError
    from dsd_lightning.packing.depth import DepthMaps, DepthPairSource, open_images
    from dsd_lightning.packing.pack import pack
    from dsd_lightning.shards.format import INDEX_NAME, ShardError

    check_settings(config)
    out, maps = Path(config.out), Path(config.maps)
    if (out / INDEX_NAME).exists():
        raise ShardError(f"out={out} holds a set of shards already; give a new or empty folder")
    if maps.resolve() == out.resolve():
        raise ShardError(f"maps={maps} is the folder of the shards; give another one")
    images = open_images(config.source)
    orphans = [orphan for orphan in images.orphans if not orphan.expected]
    if orphans and not config.allow_orphans:
        raise PackingError(_refusal(orphans))
    estimator = instantiate(config.estimator)
    finished = DepthMaps(maps / estimator.fingerprint(), estimator)
    report = pack(
        DepthPairSource(images, finished, estimator.name),
        out,
        task=TASK,
        resolution=config.resolution,
        allow_orphans=config.allow_orphans,
        overwrite=_is_remnant(out),
        image_format=config.image_format,
        max_bytes=config.max_bytes,
        workers=config.workers,
        progress=sys.stderr.isatty(),
    )
    if report.index is None:
        raise PackingError(_refusal(report.orphans))
    if not config.keep_maps:
        shutil.rmtree(finished.folder)
        if not any(maps.iterdir()):
            maps.rmdir()
    log.info(
        "%s: %d pairs in %d tars, %d maps estimated now%s; train from them with task=%s data=shards data.root=%s",
        out,
        report.index.samples,
        len(report.index.shards),
        finished.estimated,
        f", left out: {report.summary()}" if report.rejections else "",
        TASK,
        out,
    )
    return out


def _is_remnant(out: Path) -> bool:
    """Return whether `out` holds only what a killed writer left: partial files, and tars renamed before its index was."""
    from dsd_lightning.shards.format import INDEX_NAME, PARTIAL

    if not out.is_dir() or (out / INDEX_NAME).exists():
        return False
    renaming = (out / (INDEX_NAME + PARTIAL)).exists()
    return renaming or not any(out.glob("*.tar"))


def _refusal(orphans: Sequence[Orphan]) -> str:
    """Return the message for orphans that were not allowed."""
    from dsd_lightning.packing.pack import listed

    remedy = "No shards were written. Fix these images, or leave them out with allow_orphans=true"
    return "\n".join([*listed(orphans), remedy])


@hydra.main(config_path="../../conf", config_name="write_depth", version_base="1.3")
def main(config: DictConfig) -> None:
    """Run the command."""
    write_depth(config)


if __name__ == "__main__":
    run_command(main)
