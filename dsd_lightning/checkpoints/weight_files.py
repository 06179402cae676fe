"""Reads weights from safetensors files of other programs: which files make a transformer, and each tensor into its place."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from dsd_lightning.compute import finite

STEM = "diffusion_pytorch_model"

TRANSFORMER_FILE = f"{STEM}.safetensors"
"""Name of a transformer's weights in one file."""

INDEX_FILE = f"{TRANSFORMER_FILE}.index.json"
"""Name of the list of shards, beside those of a transformer in several files."""

_SHARD = re.compile(r".*-(?P<number>\d+)-of-(?P<count>\d+)\.safetensors")


class OfficialWeightsError(ValueError):
    """Files that are not in the official layout or do not fit; the message names file, keys and remedy."""


def transformer_files(folder: Path) -> list[Path]:
    """Return the files of a transformer's weights in diffusers' layout: one, or the shards that its index lists.

    Raises:
        OfficialWeightsError: there are none, a shard is missing, or one file is beside shards of the same weights.
    """
    files = sorted(folder.glob(f"{STEM}*.safetensors"))
    shards = [file for file in files if _SHARD.fullmatch(file.name)]
    index = folder / INDEX_FILE
    if (folder / TRANSFORMER_FILE).is_file() and (shards or index.is_file()):
        beside = shards[0].name if shards else index.name
        raise OfficialWeightsError(
            f"{folder} holds {TRANSFORMER_FILE} beside {beside}: one file and shards of the same weights; remove the one or "
            "the others"
        )
    if index.is_file():
        listed = _listed(index)
        if missing := [name for name in listed if not (folder / name).is_file()]:
            raise OfficialWeightsError(f"{folder} lacks {some(missing)}, which {INDEX_FILE} lists; download it again")
        if others := [file.name for file in files if file.name not in listed]:
            raise OfficialWeightsError(
                f"{folder} holds {some(others)}, which {INDEX_FILE} does not list; remove what belongs to another download"
            )
        return [folder / name for name in listed]
    if not files:
        raise OfficialWeightsError(
            f"{folder} holds no {STEM}*.safetensors; give the official model's folder transformer/"
        )
    counts = {match["count"] for file in shards if (match := _SHARD.fullmatch(file.name))}
    if shards and (len(counts) > 1 or len(shards) != int(next(iter(counts)))):
        raise OfficialWeightsError(
            f"{folder} holds {len(shards)} shards ({some(file.name for file in shards)}), whose names say "
            f"{' and '.join(sorted(counts))}; download it again"
        )
    return files


def _listed(index: Path) -> list[str]:
    """Return the names of the shards in an index; plain names alone, so that nothing outside of its folder is read."""
    try:
        names = sorted(set(json.loads(index.read_text())["weight_map"].values()))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise OfficialWeightsError(f"{index} cannot be read: {error!r}; download it again") from error
    for name in names:
        if not isinstance(name, str) or Path(name).name != name or not name.endswith(".safetensors"):
            raise OfficialWeightsError(
                f"{index} lists {name!r}, which is no .safetensors file beside it; download it again"
            )
    return names


@contextmanager
def opened(file: Path) -> Iterator[Any]:
    """Open a safetensors file.

    Raises:
        OfficialWeightsError: it cannot be read, or a tensor in it cannot.
    """
    try:
        with safe_open(file, framework="pt") as tensors:
            yield tensors
    except (SafetensorError, OSError) as error:
        raise OfficialWeightsError(f"{file} cannot be read: {error}; download it again") from error


def copy_into(value: Tensor, place: Tensor, name: str, file: Path) -> None:
    """Copy a tensor of `file` into its place.

    Raises:
        OfficialWeightsError: shapes differ, the place is on meta, or the values are not finite.
    """
    if value.shape != place.shape:
        raise OfficialWeightsError(f"{file}: {name!r} is {tuple(value.shape)}, but the model has {tuple(place.shape)}")
    if place.is_meta:
        raise OfficialWeightsError(f"{name!r} has no memory yet (base.model.initialise=meta): load into a real base")
    require_finite(value, name, file)
    place.copy_(value)


def require_finite(value: Tensor, name: str, file: Path) -> None:
    """Refuse a tensor with NaN or infinite values.

    Raises:
        OfficialWeightsError: naming tensor and file.
    """
    try:
        finite.require_finite({name: value}, str(file), "download it again, or train it again")
    except finite.NonFiniteError as error:
        raise OfficialWeightsError(str(error)) from error


def some(names: Iterable[str], limit: int = 3) -> str:
    """Return the first names, quoted, and how many more there are."""
    names = list(names)
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(repr(name) for name in names[:limit]) + more
