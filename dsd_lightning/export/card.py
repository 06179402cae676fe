"""Writes what accompanies exported weights: model card, configuration, origin of the data, metrics, samples."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig, OmegaConf

from dsd_lightning.export.licences import CARD, Licence, licence_of_model
from dsd_lightning.export.usage import Use, usage_of, warnings_of
from dsd_lightning.files import atomic
from dsd_lightning.flux.base import FluxBase
from dsd_lightning.models.generation_settings import GenerationSettings
from dsd_lightning.runs.folder import CONFIG, SAMPLES, SUMMARY

DATA, METRICS, SHEET = "data.json", "metrics.json", "samples.png"
"""Where the run's pairs came from; the run's `summary.json`; its last sample sheet."""


def licence_of(base: FluxBase, base_model: str | None = None) -> Licence:
    """Return the base's licence; see `licence_of_model`."""
    return licence_of_model(base.path, base_model)


def data_manifest(config: DictConfig) -> dict[str, Any]:
    """Return where a run's pairs came from: the data module's settings, and the index of its shards if it read any."""
    manifest: dict[str, Any] = {
        "task": _plain(config, "task"),
        "datamodule": _plain(config, "data.datamodule"),
    }
    root = OmegaConf.select(config, "data.root")
    index = Path(str(root)) / "index.json" if root is not None else None
    if index is not None:
        # The shards may be gone by now; then their settings are all there is.
        manifest["index"] = json.loads(index.read_text()) if index.is_file() else None
    return manifest


def write_companions(folder: Path, run: Path, config: DictConfig | None) -> None:
    """Write configuration, data, metrics and sample sheet, as far as they exist, into `folder`, for the card."""
    if config is not None:
        atomic.write_text(folder / CONFIG, OmegaConf.to_yaml(config))
        atomic.write_json(folder / DATA, data_manifest(config))
    copy_metrics(run, folder)
    if sheets := sorted((run / SAMPLES).glob("step_*.png")):
        atomic.write_bytes(folder / SHEET, sheets[-1].read_bytes())


def copy_metrics(run: Path, folder: Path) -> None:
    """Copy a run's last metrics, if it has any, into `folder`."""
    if (run / SUMMARY).is_file():
        atomic.write_bytes(folder / METRICS, (run / SUMMARY).read_bytes())


def write_card(folder: Path, title: str, header: Mapping[str, Any], licence: Licence, use: Use) -> None:
    """Write the model card; front matter as the Hugging Face hub reads it. It shows what is beside it in `folder`.

    Args:
        folder: of the export, with its companions in place.
        title: the model's name.
        header: the adapter's (`checkpoints/adapter.py`).
        licence: of the base.
        use: the export's format, and what it is to be used with.
    """
    has_reference = len(header["frames"]) > 1 or header["architecture"] != "text_only"
    lora = header.get("lora")
    front: dict[str, Any] = dict(licence.fields)
    if licence.base_model is not None:
        front |= {"base_model": licence.base_model}
        front |= {"base_model_relation": "adapter" if use.export_format in ("adapter", "comfyui") else "finetune"}
    front |= {
        "pipeline_tag": "image-to-image" if has_reference else "text-to-image",
        "library_name": "diffusers",
        "tags": ["flux", *(["lora"] if lora else []), "diffusers", "diffusion-self-distillation", "dsd-lightning"],
    }
    if (folder / SHEET).is_file():
        front["widget"] = [{"text": "held-out samples of the run", "output": {"url": SHEET}}]
    trained = f"LoRA of rank {lora['rank']}" if lora else "no LoRA"
    lines = [
        "---",
        yaml.safe_dump(front, sort_keys=False, allow_unicode=True).rstrip(),
        "---",
        "",
        f"# {title}",
        "",
        f"A FLUX model of the architecture `{header['architecture']}`, trained with dsd-lightning after Diffusion "
        f"Self-Distillation (arXiv 2411.18616): {trained}, {header['parameters']:,} trained parameters"
        + (f", on {licence.base_model}." if licence.base_model else "."),
        "",
    ]
    if not licence.known:
        lines += [
            "**The base model's folder names no licence.** It binds these weights: state it here before sharing.",
            "",
        ]
    lines += ["## Use", "", usage_of(use), ""]
    lines += [line for warning in warnings_of(use) for line in (f"**{warning}**", "")]
    if (folder / SHEET).is_file():
        lines += ["## Samples", "", f"![reference, reconstructed reference, generated, truth]({SHEET})", ""]
    if (folder / METRICS).is_file():
        lines += ["## Metrics", "", _measured_with(use.settings), ""]
        lines += [*_table(json.loads((folder / METRICS).read_text())), ""]
    if (folder / CONFIG).is_file():
        lines += [f"Configuration: `{CONFIG}`. Where the training pairs came from: `{DATA}`.", ""]
    lines += [
        "## Limits",
        "",
        "A model that keeps a subject's identity can be misused to show real people in scenes that never happened. Do not "
        "use it on people without their consent, and say that an image is generated where you publish it.",
        "",
    ]
    atomic.write_text(folder / CARD, "\n".join(lines))


_SHOWN = re.compile(r"(val|probe|judge)/[\w/.-]+")
"""What says how good the model is; learning rates, norms and speeds do not."""


def _measured_with(settings: GenerationSettings) -> str:
    """Return a sentence that says what the metrics belong to."""
    of = {
        "ema": "the EMA weights, which these are",
        "last": "the weights that the run validates; these are its last ones",
    }
    images = (
        f"{settings.num_inference_steps} steps, guidance {settings.guidance_scale:g}, image guidance "
        f"{settings.image_guidance:g}, text guidance {settings.text_guidance:g} and {settings.text_length} T5 tokens a prompt"
    )
    weights = of.get(settings.weights, "the weights")
    size = f"{settings.height} x {settings.width}"
    return f"On held-out pairs of {size} pixels, with {weights}; images were generated with {images}."


def _table(metrics: Mapping[str, Any]) -> list[str]:
    shown = {
        name: value
        for name, value in metrics.items()
        if isinstance(value, int | float) and "_bin" not in name and _SHOWN.fullmatch(name)
    }
    return ["| metric | value |", "|---|---|", *(f"| `{name}` | {value:.4g} |" for name, value in shown.items())]


def _plain(config: DictConfig, key: str) -> Any:
    """Return a part of a recorded configuration as plain types."""
    part = OmegaConf.select(config, key)
    return OmegaConf.to_container(part) if OmegaConf.is_config(part) else part
