"""Finds the files of a model that is named by a folder, a file, or an id on the Hugging Face hub."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import hf_hub_download, snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
)

from dsd_lightning.checkpoints.lora_files import LORA_FILE, LoraFile, lora_in
from dsd_lightning.models.generation_settings import GENERATION, GenerationSettings, read_settings

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_WEIGHT = re.compile(r"(?P<name>.+):(?P<weight>[-+]?(\d+\.?\d*|\.\d+)(e[-+]?\d+)?)", re.IGNORECASE)


class ModelSourceError(FileNotFoundError):
    """A name of a model that leads to no files; the message says what was looked for and what to do."""


@dataclass(frozen=True)
class OfficialFiles:
    """The authors' files: the folder of a whole transformer, the LoRA file beside it, and what to use them with.

    Transformer or LoRA may be None, not both; the release, unlike our exports in its layout, records no settings.
    """

    transformer: Path | None
    lora: Path | None
    settings: GenerationSettings | None = None


def is_hub_id(name: str | Path) -> bool:
    """Return whether a name may be a hub id, `owner/name`; what exists here is none."""
    return not Path(name).exists() and _HUB_ID.fullmatch(str(name)) is not None


def find_official(name: str | Path) -> OfficialFiles:
    """Return the authors' files of a hub id, of a download of it, or of its `transformer/` alone.

    Raises:
        ModelSourceError: it is none of these, or cannot be downloaded.
    """
    folder = Path(name)
    if is_hub_id(name):
        folder = download(str(name), ["transformer/*", LORA_FILE, GENERATION])
    if (folder / "transformer" / "config.json").is_file():
        return OfficialFiles(folder / "transformer", _existing(folder / LORA_FILE), read_settings(folder))
    if (folder / "config.json").is_file():
        above = folder.absolute().parent
        beside = _existing(above / LORA_FILE) if folder.absolute().name == "transformer" else None
        settings = read_settings(above) if beside is not None else read_settings(folder)
        return OfficialFiles(folder, _existing(folder / LORA_FILE) or beside, settings)
    if (folder / LORA_FILE).is_file():
        return OfficialFiles(None, folder / LORA_FILE, read_settings(folder))
    raise ModelSourceError(
        f"{name} does not hold the official weights: neither transformer/config.json, nor config.json, nor {LORA_FILE}; give "
        "the hub id primecai/dsd_model, a download of it, or its folder transformer/"
    )


def find_lora(name: str | Path) -> LoraFile:
    """Return the LoRA file, with its weight, of `NAME` or `NAME:WEIGHT`.

    NAME is a file, a folder with one, a hub id with the released file, or `owner/name/FILE.safetensors` on the hub.

    Raises:
        ModelSourceError: there is no such file, or it cannot be downloaded.
        OfficialWeightsError: a folder without a LoRA file, or with several.
    """
    text, weight = str(name), 1.0
    if not Path(text).exists() and (match := _WEIGHT.fullmatch(text)):
        text, weight = match["name"], float(match["weight"])
    path = Path(text)
    if path.is_dir():
        return LoraFile(lora_in(path), weight)
    if path.is_file():
        return LoraFile(path, weight)
    if is_hub_id(text):
        return LoraFile(lora_in(download(text, [LORA_FILE])), weight)
    parts = text.split("/")
    if len(parts) > 2 and text.endswith(".safetensors") and _HUB_ID.fullmatch("/".join(parts[:2])):
        return LoraFile(download_file("/".join(parts[:2]), "/".join(parts[2:])), weight)
    raise ModelSourceError(
        f"{text}: there is no such LoRA file; give a file, a folder with one, or a hub id (owner/name, or "
        "owner/name/FILE.safetensors), each with :WEIGHT if its update is to be scaled"
    )


def download(repository: str, patterns: Sequence[str]) -> Path:
    """Return the folder with those files of a hub repository that match `patterns`; what is in the cache is not fetched again.

    Raises:
        ModelSourceError: naming the repository and the remedy.
    """
    try:
        return Path(snapshot_download(repository, allow_patterns=list(patterns)))
    except _HUB_ERRORS as error:
        raise _refusal(repository, error) from error


def download_file(repository: str, name: str) -> Path:
    """Return a file of a hub repository.

    Raises:
        ModelSourceError: naming the repository and the remedy.
    """
    try:
        return Path(hf_hub_download(repository, name))
    except _HUB_ERRORS as error:
        raise _refusal(f"{repository}/{name}", error) from error


_HUB_ERRORS = (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError)


def _existing(file: Path) -> Path | None:
    return file if file.is_file() else None


def _refusal(name: str, error: Exception) -> ModelSourceError:
    if isinstance(error, GatedRepoError):
        remedy = "accept its licence on its page, and log in with `hf auth login`"
    elif isinstance(error, RepositoryNotFoundError):
        remedy = "there is no such repository, or it is private: check the name, or log in with `hf auth login`"
    elif isinstance(error, LocalEntryNotFoundError):
        remedy = "the hub cannot be reached, and it is not in the cache: check the network, or name a folder"
    else:
        remedy = str(error)
    return ModelSourceError(f"{name} is no folder or file here, and cannot be downloaded from the hub: {remedy}")
