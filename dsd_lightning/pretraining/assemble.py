"""Assembles a base model folder from a pretraining run: EMA weights, scheduler, `model_index.json`, metrics.

python -m dsd_lightning.pretraining.assemble run=outputs/pretraining/base
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any, cast

import diffusers
import hydra
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from omegaconf import DictConfig, OmegaConf
from PIL import Image

from dsd_lightning.architectures.text_only import TextOnly
from dsd_lightning.checkpoints.adapter import load_adapter
from dsd_lightning.checkpoints.folder_io import find_last
from dsd_lightning.files.atomic import replacing_folder, write_json
from dsd_lightning.flux.base import FluxBase
from dsd_lightning.images.pixels import to_image
from dsd_lightning.module import DiffusionSelfDistillation, Dropout
from dsd_lightning.pairs import Task
from dsd_lightning.pretraining.quality import attribute_accuracy, grid_consistency, panel_agreement
from dsd_lightning.rectified_flow import Uniform
from dsd_lightning.runs.resolvers import register_resolvers
from dsd_lightning.sampler import SamplerSettings

log = logging.getLogger(__name__)

MODEL_INDEX = {
    "_class_name": "FluxPipeline",
    "_diffusers_version": diffusers.__version__,
    "scheduler": ["diffusers", "FlowMatchEulerDiscreteScheduler"],
    "text_encoder": ["transformers", "CLIPTextModel"],
    "text_encoder_2": ["transformers", "T5EncoderModel"],
    "tokenizer": ["transformers", "CLIPTokenizer"],
    # Not T5TokenizerFast: transformers 5 rebuilds that class from the vocabulary and forgets the normaliser.
    "tokenizer_2": ["transformers", "PreTrainedTokenizerFast"],
    "transformer": ["diffusers", "FluxTransformer2DModel"],
    "vae": ["diffusers", "AutoencoderKL"],
}


def write_scheduler(folder: Path, options: dict[str, Any]) -> None:
    """Write the scheduler's configuration; pretraining reads it for its timestep shift."""
    FlowMatchEulerDiscreteScheduler(**options).save_pretrained(folder / "scheduler")


def write_transformer(folder: Path, run: Path, config: DictConfig) -> int:
    """Write the EMA weights of a pretraining run's last checkpoint, in half precision, and return its step."""
    checkpoint = find_last(run / "checkpoints")
    if checkpoint is None:
        raise FileNotFoundError(f"run={run}: no complete checkpoint in {run / 'checkpoints'}; pretrain first")
    base: FluxBase = hydra.utils.instantiate(config)
    architecture = TextOnly(base.transformer(), train_base=True)
    load_adapter(checkpoint, architecture)
    with replacing_folder(folder / "transformer") as partial:
        architecture.transformer.to(torch.float16).save_pretrained(partial)
    write_json(folder / "model_index.json", MODEL_INDEX)
    return int(checkpoint.name.removeprefix("step_"))


def teacher(folder: Path, steps: int) -> DiffusionSelfDistillation:
    """Return the finished base as a module that can generate."""
    base = FluxBase(str(folder), text_length=24, guidance_scale=3.5)
    return DiffusionSelfDistillation(
        architecture=TextOnly(base.transformer()),
        codec=base.codec(),
        text_encoder=base.text_encoder(),
        task=Task("text_to_image", aligned=False, frame_weights={"target": 1.0}),
        density=Uniform(),
        shift=base.resolution_shift(),
        dropout=Dropout(),
        optimizer=torch.optim.AdamW,
        schedule=torch.optim.lr_scheduler.ConstantLR,
        guidance_scale=3.5,
        sampler=SamplerSettings(num_inference_steps=steps, guidance_scale=3.5),
        seed=0,
    ).eval()


register_resolvers()


@hydra.main(config_path="../../conf", config_name="pretraining/assemble", version_base="1.3")
def main(config: DictConfig) -> None:
    """Write the folder; measure it, if asked to, and write the metrics beside it."""
    folder = Path(config.output)
    write_scheduler(folder, cast(dict[str, Any], OmegaConf.to_container(config.scheduler, resolve=True)))
    if config.run is None:
        return
    step = write_transformer(folder, Path(config.run), config.transformer)
    if not config.measure:
        return
    module = teacher(folder, config.num_inference_steps)
    metrics: dict[str, Any] = {"steps": step, "num_inference_steps": config.num_inference_steps}
    images = {}
    for name, held_out in (("training", False), ("held_out", True)):
        accuracy, images[name] = attribute_accuracy(module, config.singles, config.seed, held_out)
        metrics[f"attribute_accuracy_{name}"] = accuracy
        log.info("attributes of single images (%s identities): %s", name, accuracy)
    for name, names_subject in (("named", True), ("unnamed", False)):
        metrics[f"grids_{name}"], images[name] = grid_consistency(
            module, config.grids, config.seed, names_subject, config.grid_text_length
        )
        log.info("grids, subject %s: %s", name, metrics[f"grids_{name}"])
    for name, count, length in (
        ("two_panels_unnamed", config.judged_two_panels, None),
        ("grids_unnamed", config.judged_grids, config.grid_text_length),
    ):
        if count:
            metrics[f"{name}_judged"], images[f"{name}_judged"] = panel_agreement(module, count, config.seed, length)
            log.info("panels, subject not named, %s: %s", name, metrics[f"{name}_judged"])
    write_json(folder / "metrics.json", metrics)
    for name, generated in images.items():
        _sheet(generated[:16]).save(Path(config.sheets) / f"tiny_flux_{name}.png")


def _sheet(images: torch.Tensor) -> Image.Image:
    rows = [torch.cat(list(images[i : i + 8]), dim=-1) for i in range(0, len(images), 8)]
    return to_image(torch.cat(rows, dim=-2))


if __name__ == "__main__":
    main()
