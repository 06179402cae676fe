"""Generates a method's images in fixed batches of cases, each with a seed of its own.

After a kill, a batch is generated again unless all its images are there; several processes share the batches. So neither
resuming nor the number of devices changes an image.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Protocol, runtime_checkable

import torch
from PIL import Image
from tqdm import tqdm

from dsd_lightning.cli.console import seconds_between_bars
from dsd_lightning.compute.dtensors import full_tensor
from dsd_lightning.evaluation.errors import EvaluationError
from dsd_lightning.evaluation.samples.benchmark import Case
from dsd_lightning.evaluation.samples.result_folder import Samples
from dsd_lightning.files.atomic import write_json
from dsd_lightning.images.pixels import load_rgb
from dsd_lightning.pipeline import TwoFramePipeline
from dsd_lightning.randomness import normal, torch_generator

log = logging.getLogger(__name__)

SETTINGS = "settings.json"
"""In a method's folder: how its images were generated; other settings are refused there."""

_FINGERPRINT_VALUES = 16


@runtime_checkable
class Method(Protocol):
    """Generates images for cases."""

    def described(self) -> dict[str, Any]:
        """Return everything that determines its images, as plain JSON."""
        ...

    def generate(self, cases: Sequence[Case], references: Sequence[Image.Image], seed: int) -> list[Image.Image]:
        """Return an image a case; random numbers are keyed by `seed` and the case."""
        ...


@dataclass(frozen=True)
class Part:
    """The share of the batches that this process generates, if several share the work."""

    index: int = 0
    of: int = 1

    def __post_init__(self) -> None:
        if not 0 <= self.index < self.of:
            raise EvaluationError(f"part.index={self.index}, part.of={self.of}: index counts from 0 to of - 1")


def make(
    method: Method, samples: Samples, cases: Sequence[Case], seed: int, batch_size: int, part: Part | None = None
) -> None:
    """Generate the missing images of all cases.

    Args:
        method: generates the images.
        samples: where they go.
        cases: all of the benchmark's, in its order.
        seed: of all noise.
        batch_size: cases of a batch.
        part: this process's share; None for all.

    Raises:
        EvaluationError: the folder holds images of other settings.
    """
    if batch_size < 1:
        raise EvaluationError(f"batch_size={batch_size}: at least 1 image at once")
    _require_settings(samples, {**method.described(), "seed": seed, "batch_size": batch_size})
    missing = missing_batches(samples, cases, batch_size, part)
    name, pause = f"generating {samples.method}", seconds_between_bars()
    for batch in tqdm(missing, desc=name, unit="batch", disable=not missing, mininterval=pause):
        references = [load_rgb(case.subject.reference) for case in batch]
        for case, reference, image in zip(batch, references, method.generate(batch, references, seed), strict=True):
            samples.write(case, image, reference)


def missing_batches(
    samples: Samples, cases: Sequence[Case], batch_size: int, part: Part | None = None
) -> list[Sequence[Case]]:
    """Return the batches of `cases`, of a process's share, of which an image is missing."""
    part = part or Part()
    batches = [cases[start : start + batch_size] for start in range(0, len(cases), batch_size)][part.index :: part.of]
    missing = [batch for batch in batches if any(samples.image(case) is None for case in batch)]
    log.info("%s: %d of %d batches are there already", samples.method, len(batches) - len(missing), len(batches))
    return missing


def _require_settings(samples: Samples, settings: dict[str, Any]) -> None:
    file = samples.folder / SETTINGS
    plain = json.loads(json.dumps(settings))
    if file.is_file():
        if (before := json.loads(file.read_text(encoding="utf-8"))) != plain:
            changed = sorted(name for name in {*before, *plain} if before.get(name) != plain.get(name))
            raise EvaluationError(
                f"{samples.folder} holds images that were generated with another {', '.join(changed)} "
                f"({file}); give another method.name, or remove the folder"
            )
        return
    write_json(file, dict(sorted(plain.items())))


@dataclass(frozen=True)
class Sampling:
    """Settings of a model's sampler; None takes the model's own, as `python generate.py` does.

    Attributes:
        steps: Euler steps.
        guidance_scale: value of the guidance embedding.
        image_guidance, text_guidance: true guidance; 1.0 is none.
        side: of a frame, pixels; None for that of the model's training.
    """

    steps: int | None = None
    guidance_scale: float | None = None
    image_guidance: float | None = None
    text_guidance: float | None = None
    side: int | None = None

    def completed(self, own: Mapping[str, Any]) -> Sampling:
        """Return these settings with those of a pipeline's configuration in place of None."""
        names = {"steps": "num_inference_steps"} | {
            name: name for name in ("guidance_scale", "image_guidance", "text_guidance")
        }
        return replace(self, **{name: own[key] for name, key in names.items() if getattr(self, name) is None})


class Model:
    """Any of our models, or the authors', through the one pipeline.

    Args:
        pipeline: loaded.
        sampling: settings of its sampler.
        damage: standard deviations of noise that is added to each of its transformer's matrices, relative to that
            matrix's own; 0 for none. For a deliberately bad model, which a judge must score below a good one.
    """

    def __init__(self, pipeline: TwoFramePipeline, sampling: Sampling, damage: float = 0.0) -> None:
        self.pipeline, self.sampling, self.damage = pipeline, sampling.completed(pipeline.config), damage
        pipeline.set_progress_bar_config(disable=True)  # the batches have one
        if damage:
            _damage(pipeline, damage)

    def described(self) -> dict[str, Any]:
        """Return the model's name, a fingerprint of its weights, its sampling and its damage."""
        return {
            "model": self.pipeline.config.model_name,
            "weights": _fingerprint(self.pipeline),
            "sampling": asdict(self.sampling),
            "damage": self.damage,
        }

    def generate(self, cases: Sequence[Case], references: Sequence[Image.Image], seed: int) -> list[Image.Image]:
        """Return an image a case, from noise of its own."""
        sampling = self.sampling
        generators = [
            torch_generator("evaluation", seed, case.subject.name, case.prompt.index, case.copy) for case in cases
        ]
        output: Any = self.pipeline(
            list(references),
            [case.prompt.text for case in cases],
            num_inference_steps=sampling.steps,
            guidance_scale=sampling.guidance_scale,
            image_guidance=sampling.image_guidance,
            text_guidance=sampling.text_guidance,
            height=sampling.side,
            width=sampling.side,
            generator=generators,
        )
        return list(output.images)


def _fingerprint(pipeline: TwoFramePipeline) -> str:
    """Return a digest of the first values of every matrix: other weights have another one.

    Sharded weights are all-gathered, one at a time: all devices must call it.
    """
    digest = hashlib.sha256()
    for name, weight in pipeline.transformer.named_parameters():
        values = full_tensor(weight.detach()).flatten()[:_FINGERPRINT_VALUES].float().cpu().numpy()
        digest.update(f"{name}{tuple(weight.shape)}".encode() + values.tobytes())
    return digest.hexdigest()[:16]


@torch.no_grad()
def _damage(pipeline: TwoFramePipeline, amount: float) -> None:
    for name, weight in pipeline.transformer.named_parameters():
        if weight.ndim >= 2:
            noise = normal(weight.shape, "evaluation", "damage", name).to(weight)
            weight += amount * weight.std() * noise
