"""Encodes a set's pairs once, ahead of training: `python -m datamodules.commands.encode_shards root=FOLDER out=FOLDER`."""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import hydra
from hydra.utils import get_class, instantiate
from omegaconf import DictConfig, OmegaConf
from tqdm import tqdm

from dsd_lightning.cli.errors import run_command
from dsd_lightning.cli.settings import check_settings
from dsd_lightning.files.atomic import remove_leftovers, replacing
from dsd_lightning.runs.resolvers import register_resolvers
from dsd_lightning.shards import ShardError, ShardIndex, ShardWriter
from dsd_lightning.shards.format import INDEX_NAME

if TYPE_CHECKING:
    import torch

    from datamodules.samples import Damage
    from datamodules.sources.shards import ShardPairs
    from dsd_lightning.architectures.base import Architecture
    from dsd_lightning.flux.codec import Codec
    from dsd_lightning.flux.text import TextEncoder
    from dsd_lightning.pairs import Pair, Task

log = logging.getLogger(__name__)

register_resolvers()

POSITIONS = "positions"


def encode_shards(config: DictConfig) -> ShardIndex:
    """Write the set that `conf/encode_shards.yaml` describes: the pairs of `root` with their encodings beside them.

    Finished batches wait in the folder `waiting`, so that the same command goes on after a kill and encodes none of them
    again. The set appears at the end, atomically, and `waiting` is removed.

    Returns:
        The index of the new set.

    Raises:
        SettingError: a value that cannot be meant.
        ValueError: a frame size that the VAE cannot pack.
        ShardError: `root` holds no set, or `out` holds one already.
        DamagedDataError: more than `max_damaged` pairs cannot be used.
    """
    from datamodules.encodings import encodings_key

    check_settings(config)
    out = Path(config.out)
    if (out / INDEX_NAME).exists():
        raise ShardError(f"out={out} holds a set of shards already; give a new or empty folder")
    pairs, sizes = _pairs(config)
    architecture, codec, text_encoder = _encoders(config)
    for height, width in sizes:
        codec.require_size(height, width)
    key = encodings_key(architecture, codec, text_encoder, sizes)
    batches = list(_batches(pairs, config.batch_size))
    tars = [entry.sha256 for entry in pairs.shards.index.shards] if pairs.shards.index is not None else []
    keys = [pairs.shards.keys[position] for position in pairs.positions]
    settings = [key, config.batch_size, pairs.task.name, sorted(pairs.task.captions), tars, keys]
    folder = Path(config.waiting) / hashlib.sha256(json.dumps(settings).encode()).hexdigest()[:16]
    folder.mkdir(parents=True, exist_ok=True)
    remove_leftovers(folder)
    files = [folder / f"{number:07d}.safetensors" for number in range(len(batches))]
    todo = [(file, batch) for file, batch in zip(files, batches, strict=True) if not file.exists()]
    damaged = 0
    if len(todo) < len(files):
        log.info("%d of %d batches are encoded already", len(files) - len(todo), len(files))
        damaged = sum(len(batch) - _stored(file) for file, batch in zip(files, batches, strict=True) if file.exists())
    damaged = _encode(todo, pairs, (architecture, codec, text_encoder), config, damaged)
    index = _write(files, pairs, key, out, damaged, config)
    shutil.rmtree(folder)
    if not any(folder.parent.iterdir()):
        folder.parent.rmdir()
    log.info(
        "%s: %d pairs with encodings; train on them with arch=%s task=%s data=shards data.root=%s "
        "data.datamodule.source.encoded=true",
        *(out, index.samples, architecture.name, pairs.task.name, out),
    )
    return index


def _pairs(config: DictConfig) -> tuple[ShardPairs, list[tuple[int, int]]]:
    """Return the whole set as pairs cropped in the middle, and the frame sizes."""
    from datamodules.base import PairData
    from datamodules.sources.shards import Shards

    source = Shards(
        root=config.root,
        resolution=config.resolution,
        buckets=config.buckets,
        validation_pairs=0,
        crop="center",
        workers=config.workers,
        max_damaged=config.max_damaged,
        verify=config.verify,
    )
    make: type[PairData] = get_class(config.task.datamodule)
    data = make(instantiate(config.task.relation), source, batch_size=1, seed=0)
    return source.training(data), list(data.sizes)


def _encoders(config: DictConfig) -> tuple[Architecture, Codec, TextEncoder]:
    """Return the encoders on their device; the architecture holds a transformer on meta, which encoding does not need."""
    import torch

    from dsd_lightning.compute.device import find_device
    from dsd_lightning.models.build import build_base

    device = find_device(config.device)
    base = build_base(config)
    # Resolved before the base is: an image encoder keeps its weights.
    build: Any = instantiate(OmegaConf.to_container(config.arch, resolve=True), lora=None)
    transformer = base.without_memory().transformer()
    with torch.device("meta"):
        architecture = build(transformer=transformer)
    for module in architecture.children():
        if not any(parameter.is_meta for parameter in module.parameters()):
            module.to(device)
    return architecture, base.codec().to(device), base.text_encoder().to(device)


def _batches(pairs: ShardPairs, size: int) -> Iterator[list[int]]:
    """Yield the indices of all pairs in batches of one frame size each."""
    by_size: dict[tuple[int, int], list[int]] = {}
    for index in range(len(pairs)):
        waiting = by_size.setdefault(pairs.bucket(index), [])
        waiting.append(index)
        if len(waiting) == size:
            yield by_size.pop(pairs.bucket(index))
    yield from by_size.values()


class _Read:
    """Batches of pairs, read by the loader's workers; a pair that cannot be used is given as its damage."""

    def __init__(self, pairs: ShardPairs, batches: list[list[int]]) -> None:
        self.pairs, self.batches = pairs, batches

    def __len__(self) -> int:
        return len(self.batches)

    def __getitem__(self, number: int) -> list[tuple[int, Pair | Damage]]:
        return [(index, self.pairs.pair_or_damage(index, 0)) for index in self.batches[number]]


def _encode(
    todo: list[tuple[Path, list[int]]],
    pairs: ShardPairs,
    encoders: tuple[Architecture, Codec, TextEncoder],
    config: DictConfig,
    damaged: int,
) -> int:
    """Encode batches into their files and return the number of pairs left out, `damaged` of them earlier."""
    import torch
    from safetensors.torch import save_file
    from torch.utils.data import DataLoader

    from datamodules.base import DamagedDataError
    from datamodules.samples import Damage

    reader: Any = _Read(pairs, [batch for _, batch in todo])
    loader = DataLoader(reader, batch_size=None, num_workers=config.workers)
    shown = tqdm(loader, desc="encoding", unit="batch", disable=not sys.stderr.isatty())
    for (file, _), read in zip(todo, shown, strict=True):
        usable: list[tuple[int, Pair]] = []
        for index, pair in read:
            if isinstance(pair, Damage):
                damaged += 1
                log.warning("left out: %s: %s", pair.key, pair.reason)
            else:
                usable.append((index, pair))
        if damaged > config.max_damaged:
            raise DamagedDataError(f"{damaged} pairs cannot be used, more than max_damaged={config.max_damaged}")
        tensors = _encoded([pair for _, pair in usable], encoders, pairs.task) if usable else {}
        positions = torch.tensor([pairs.positions[index] for index, _ in usable], dtype=torch.int64)
        with replacing(file) as temporary:
            save_file({**tensors, POSITIONS: positions}, temporary)
    return damaged


def _stored(file: Path) -> int:
    """Return the number of pairs in the file of a batch."""
    from safetensors import safe_open

    with safe_open(file, "pt") as tensors:
        return int(tensors.get_slice(POSITIONS).get_shape()[0])


def _encoded(
    read: list[Pair], encoders: tuple[Architecture, Codec, TextEncoder], task: Task
) -> dict[str, torch.Tensor]:
    """Return the encodings and embeddings of a batch by the names under which they are stored, on the CPU."""
    import torch

    from datamodules.encodings import MASK, named_embeddings, named_encodings
    from datamodules.samples import stacked_masks, words_of
    from dsd_lightning.compute.finite import require_finite
    from dsd_lightning.pairs import TARGET

    architecture, codec, text_encoder = encoders
    references = [pair.reference for pair in read if pair.reference is not None]
    device = next(codec.parameters()).device
    with torch.no_grad():
        encoded = architecture.encode(
            torch.stack(references).to(device) if references else None,
            torch.stack([pair.target for pair in read]).to(device),
            codec,
        )
        texts = {kind: text_encoder.encode([words_of(pair, kind) for pair in read]) for kind in task.captions}
    named = named_encodings(encoded) | named_embeddings(texts)
    if (masks := stacked_masks([pair.mask for pair in read])) is not None:
        # As small as the latents, whose loss they weight.
        height, width = architecture.split(encoded.clean)[TARGET].shape[-2:]
        named[MASK] = torch.nn.functional.adaptive_avg_pool2d(masks, (height, width))
    keys = f"{read[0].key} to {read[-1].key}"
    require_finite(named, f"the encodings of {keys}", "the base's weights are damaged, or overflow in base.model.dtype")
    return {name: value.cpu().contiguous() for name, value in named.items()}


def _write(files: list[Path], pairs: ShardPairs, key: str, out: Path, damaged: int, config: DictConfig) -> ShardIndex:
    from safetensors.torch import load_file

    shards = pairs.shards
    resolution = shards.index.resolution if shards.index is not None else None
    # The files of a killed writer may be replaced: `out` holds no index.
    with ShardWriter(
        out,
        task=pairs.task.name,
        resolution=resolution,
        max_bytes=config.max_bytes,
        encoding_key=key,
        origin=shards.index.origin if shards.index is not None else None,
        overwrite=out.is_dir() and any(out.glob("*.partial")),
    ) as writer:
        if damaged:
            writer.reject("unusable", damaged)
        for file in tqdm(files, desc="writing", unit="batch", disable=not sys.stderr.isatty()):
            tensors = load_file(file)
            positions = tensors.pop(POSITIONS).tolist()
            for row, position in enumerate(positions):
                record = shards.record(position)
                mine = {name: value[row] for name, value in tensors.items()}
                kinds = tuple(f"{kind}." for kind in pairs.task.captions)
                writer.write(
                    shards.keys[position],
                    shards.stored_bytes(position, "reference"),
                    shards.target_bytes(position),
                    record.caption,
                    record.instruction,
                    record.provenance,
                    record.facts,
                    encoded={name: value for name, value in mine.items() if not name.startswith(kinds)},
                    text={name: value for name, value in mine.items() if name.startswith(kinds)},
                    mask=shards.stored_bytes(position, "mask"),
                )
    written = ShardIndex.read(out)
    assert written is not None
    return written


@hydra.main(config_path="../../conf", config_name="encode_shards", version_base="1.3")
def main(config: DictConfig) -> None:
    """Run the command."""
    encode_shards(config)


if __name__ == "__main__":
    run_command(main)
