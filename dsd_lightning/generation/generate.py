"""Generates the images of a job, and collects their metadata."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from PIL import Image

from dsd_lightning.generation.jobs import Job
from dsd_lightning.generation.provenance import guidance_sheet
from dsd_lightning.pipeline.inputs import fit

if TYPE_CHECKING:
    from dsd_lightning.pipeline import TwoFramePipeline

AT_ONCE = 4
"""Images of a batch."""


@dataclass(frozen=True)
class Generated:
    """One image, the reconstructed reference (of architectures that denoise both frames), and the noise's seed."""

    image: Image.Image
    reconstructed: Image.Image | None
    seed: int


def complete(job: Job, pipeline: TwoFramePipeline) -> Job:
    """Return `job` with the model's own guidances and steps where it has none."""
    own = {
        "guidance": "guidance_scale",
        "i_guidance": "image_guidance",
        "t_guidance": "text_guidance",
        "steps": "num_inference_steps",
    }
    missing = {name: pipeline.config[setting] for name, setting in own.items() if getattr(job, name) is None}
    return replace(job, **missing)


def generate(pipeline: TwoFramePipeline, job: Job, reference: Image.Image) -> Iterator[Generated]:
    """Yield the images of a job, whose seed is not -1, as they are finished."""
    for first in range(0, job.num_images, AT_ONCE):
        seeds = [job.seed + index for index in range(first, min(first + AT_ONCE, job.num_images))]
        yield from generate_prompts(pipeline, job, reference, [job.text] * len(seeds), seeds)


def generate_prompts(
    pipeline: TwoFramePipeline, job: Job, reference: Image.Image, prompts: Sequence[str], seeds: Sequence[int]
) -> Iterator[Generated]:
    """Yield an image for every prompt and seed, generated as one batch with the settings of `job`."""
    output: Any = pipeline(
        reference,
        list(prompts) if len(set(prompts)) > 1 else prompts[0],
        image_guidance=job.i_guidance,
        text_guidance=job.t_guidance,
        generator=[torch.Generator().manual_seed(seed) for seed in seeds],
        num_images_per_prompt=1 if len(set(prompts)) > 1 else len(seeds),
        return_reference=True,
        **_options(job),
    )
    reconstructed = output.references or [None] * len(seeds)
    for values in zip(output.images, reconstructed, seeds, strict=True):
        yield Generated(*values)


def generate_sheet(
    pipeline: TwoFramePipeline, job: Job, reference: Image.Image, image: Sequence[float], text: Sequence[float]
) -> Image.Image:
    """Return a sheet over image and text guidances, all from the noise of the job's seed."""
    height, width = job.size or (None, None)
    latents = pipeline.draw_latents(1, height, width, torch.Generator().manual_seed(job.seed))

    def cell(i: float, t: float) -> Image.Image:
        output: Any = pipeline(reference, job.text, image_guidance=i, text_guidance=t, latents=latents, **_options(job))
        result: Image.Image = output.images[0]
        return result

    rows = [[cell(i, t) for t in text] for i in image]
    return guidance_sheet(fit(reference, rows[0][0].height, rows[0][0].width), rows, image, text)


def _options(job: Job) -> dict[str, Any]:
    size = dict(zip(("height", "width"), job.size, strict=True)) if job.size else {}
    return {"num_inference_steps": job.steps, "guidance_scale": job.guidance, **size}


def provenance(pipeline: TwoFramePipeline, job: Job, seed: int, given: str | None = None) -> dict[str, Any]:
    """Return an image's metadata; `given` is the user's prompt, recorded if another one was used."""
    facts: dict[str, Any] = {
        "model": pipeline.config.model_name,
        "seed": seed,
        "prompt": job.text,
        "reference": job.image.name,
        "guidance_scale": job.guidance,
        "image_guidance": job.i_guidance,
        "text_guidance": job.t_guidance,
        "steps": job.steps,
        "generated": True,
    }
    if pipeline.transformer.step_cache is not None:
        facts["step_cache"] = str(pipeline.transformer.step_cache)
    return facts if given in (None, job.text) else {**facts, "given_prompt": given}
