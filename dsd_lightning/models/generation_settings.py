"""Records what a model was trained and previewed with, beside exported weights, so that it is used with the same."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal

from omegaconf import DictConfig, OmegaConf

from dsd_lightning.files import atomic
from dsd_lightning.files.folders import read_json

GENERATION = "generation.json"
"""Name of the record in an exported folder."""


class GenerationSettingsError(ValueError):
    """A record that cannot be used; the message names the file, the key and the value."""


@dataclass(frozen=True)
class GenerationSettings:
    """What a model is to be used with. The defaults are those of the authors' release, which records none.

    Attributes:
        text_length: T5 tokens a prompt in training.
        height, width: of a frame in training, pixels.
        num_inference_steps: of the previews and probes.
        guidance_scale: value of the guidance embedding of the previews and probes.
        image_guidance, text_guidance: true guidance of the previews and probes; 1.0 is none.
        weights: "ema" or "last": which of a run's weights these are; "" where nobody knows.
    """

    text_length: int = 512
    height: int = 512
    width: int = 512
    num_inference_steps: int = 28
    guidance_scale: float = 3.5
    image_guidance: float = 1.0
    text_guidance: float = 1.0
    weights: Literal["ema", "last", ""] = ""


def settings_of(config: DictConfig, weights: Literal["ema", "last", ""] = "") -> GenerationSettings:
    """Return the settings in a run's configuration; what it leaves open has the defaults."""
    names = ("num_inference_steps", "guidance_scale", "image_guidance", "text_guidance")
    settings = {name: OmegaConf.select(config, f"sampler.{name}") for name in names}
    settings["text_length"] = OmegaConf.select(config, "base.model.text_length")
    resolution = OmegaConf.select(config, "data.datamodule.source.resolution")
    if resolution is not None:
        settings["height"], settings["width"] = resolution
    return GenerationSettings(**{name: value for name, value in settings.items() if value is not None}, weights=weights)


def write_settings(folder: Path, settings: GenerationSettings) -> None:
    """Write the record into `folder`."""
    atomic.write_json(folder / GENERATION, asdict(settings))


def read_settings(folder: Path) -> GenerationSettings | None:
    """Return the record in `folder`, or None if there is none. Keys that are not known here are passed over.

    Raises:
        GenerationSettingsError: a value that makes no sense.
        DamagedError: the file holds no JSON object.
    """
    file = folder / GENERATION
    if not file.is_file():
        return None
    stored: Mapping[str, Any] = read_json(file)
    settings: dict[str, Any] = {}
    for field in fields(GenerationSettings):
        if field.name not in stored:
            continue
        value = stored[field.name]
        whole = isinstance(value, int) and not isinstance(value, bool)
        if field.name == "weights":
            fits = value in ("ema", "last", "")
        elif "guidance" in field.name:
            fits = (whole or isinstance(value, float)) and 0 <= value < 1000
        else:
            fits = whole and 1 <= value <= 65536
        if not fits:
            raise GenerationSettingsError(
                f"{file}: {field.name}={value!r} makes no sense; correct it, or remove the file"
            )
        settings[field.name] = float(value) if "guidance" in field.name else value
    return GenerationSettings(**settings)
