"""Encodes the sets of `distill.py` that are not encoded yet, or whose tars have changed.

ROOT/train/                  the set with its encodings
ROOT/train.made_from.json    the tars that it was encoded from, and the settings that decide the encodings
"""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from datamodules.commands.encode_shards import encode_shards
from dsd_lightning.files.atomic import write_json
from dsd_lightning.files.text import read_text
from dsd_lightning.runs.folder import flattened
from dsd_lightning.shards import ShardError, ShardIndex

log = logging.getLogger(__name__)

_OF_MODEL = ("path", "dtype", "initialise", "text_length")
"""Settings of `base.model` that decide encodings."""


class RunEncoder:
    """Encodes a run's sets into a folder of their own, with the encoders of `conf/encode_shards.yaml`.

    A set that was encoded from the same tars with the same settings is left as it is. One whose tars have changed is
    encoded again; one of other encoders is not touched.

    Args:
        root: folder of the encoded sets.
        settings: the rest of `conf/encode_shards.yaml`: base, arch, task, resolution, batch_size, ...
    """

    def __init__(self, root: str, **settings: Any) -> None:
        self.root = Path(root)
        self.settings: DictConfig = OmegaConf.create(settings)

    def encode(self, images: Path) -> Path:
        """Encode the set in the folder `images`, unless it is encoded; return the folder of the encoded set.

        Raises:
            ShardError: a set of other encoders is there, or one that is of no run.
            DamagedDataError, ValueError: see `encode_shards`.
        """
        out = self.root / images.name
        note = self.root / f"{images.name}.made_from.json"
        index = ShardIndex.read(images)
        if index is None:
            raise ShardError(f"{images} holds no set of shards to encode")
        made_from: dict[str, Any] = {"tars": [shard.sha256 for shard in index.shards], "encoders": self._encoders()}
        recorded: dict[str, Any] | None = json.loads(read_text(note)) if note.exists() else None
        finished = ShardIndex.read(out) is not None
        if recorded == made_from and finished:
            return out
        waiting = out.with_name(f"{out.name}.waiting")
        if recorded != made_from:
            if recorded is None and finished:
                raise ShardError(f"{out} holds a set that is not of a run; give another encoding.root=FOLDER")
            if recorded is not None:
                if finished:
                    self._require_same_encoders(recorded["encoders"], made_from["encoders"], out)
                shutil.rmtree(out, ignore_errors=True)
                shutil.rmtree(waiting, ignore_errors=True)
            write_json(note, made_from)
        log.info("encoding %s", images)
        config = self.settings.copy()
        config.update({"root": str(images), "out": str(out), "waiting": str(waiting)})
        encode_shards(config)
        return out

    def _encoders(self) -> dict[str, Any]:
        """Return the settings that decide the encodings, by dotted name."""
        plain: Any = OmegaConf.to_container(self.settings, resolve=True)
        deciding = {
            "base.model": {name: plain["base"]["model"][name] for name in _OF_MODEL},
            "arch": {name: value for name, value in plain["arch"].items() if name != "lora"},
            "task": {"name": plain["task"]["name"], "captions": sorted(plain["task"]["relation"]["captions"])},
            "encoding": {name: plain[name] for name in ("resolution", "buckets")},
        }
        return flattened(deciding)

    def _require_same_encoders(self, recorded: dict[str, Any], wanted: dict[str, Any], out: Path) -> None:
        changed = [
            f"{name}={recorded.get(name)} (now {wanted.get(name)})"
            for name in sorted({*recorded, *wanted})
            if recorded.get(name) != wanted.get(name)
        ]
        if changed:
            raise ShardError(
                f"{out} was encoded with {', '.join(changed)}: give another encoding.root=FOLDER, or remove {self.root} to "
                "encode again"
            )
