"""How does `python generate.py` run: in which order are things checked, loaded, drawn and written, and how does it end?"""

from __future__ import annotations

import logging
import os
import secrets
import sys
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from dsd_lightning.generation import arguments, prompts
from dsd_lightning.generation.jobs import GenerationError, Job, read_jobs

if TYPE_CHECKING:
    from dsd_lightning.pipeline import TwoFramePipeline

REFUSED, NO_MEMORY, INTERRUPTED = 2, 3, 130
"""Exit codes beside 0."""

AT_ONCE = 4
"""Pictures of one job that are drawn as one batch."""


def main(given: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code.

    What is cheap to check is checked before anything is loaded. HYDRA_FULL_ERROR=1 shows tracebacks, as with the other
    commands.
    """
    chosen = arguments.parser().parse_args(given)
    logging.basicConfig(format="%(levelname)s: %(message)s", level=logging.WARNING, stream=sys.stderr)
    from dsd_lightning.errors import FULL_ERROR, message_for_user  # here, for --help to be quick
    from dsd_lightning.pipeline import memory

    try:
        _run(chosen)
    except KeyboardInterrupt:
        return _end("stopped; finished pictures are there, and --jobs goes on where it was", INTERRUPTED)
    except Exception as error:
        if memory.is_out_of_memory(error):
            return _end(f"error: {memory.NO_MEMORY}", NO_MEMORY)
        message = message_for_user(error)
        if message is None or os.environ.get(FULL_ERROR) == "1":
            raise
        return _end(f"error: {message}", REFUSED)
    return 0


def _end(message: str, code: int) -> int:
    sys.stderr.write(f"\n{message}\n")
    return code


def _say(message: str) -> None:
    sys.stdout.write(message + "\n")
    sys.stdout.flush()


def _run(chosen: Any) -> None:
    arguments.check(chosen)
    guidances = None if chosen.sheet is None else arguments.sheet_of(chosen.sheet)
    if chosen.jobs is None:
        jobs = [arguments.job_of(chosen)]
    else:
        defaults = {
            name: getattr(chosen, name) for name in ("seed", "num_images", "guidance", "i_guidance", "t_guidance")
        }
        defaults |= {"steps": chosen.steps, "size": arguments.parse_size(chosen.size)}  # type: ignore[attr-defined]
        listed = read_jobs(chosen.jobs, defaults)
        jobs = [job for job in listed if not all(output.is_file() for output in job.outputs())]
        if len(jobs) < len(listed):
            _say(f"{len(listed) - len(jobs)} of {len(listed)} jobs are done already")
    _check_files(jobs)
    if not jobs:
        return
    texts = [prompts.one_line(job.text) for job in jobs]
    if not chosen.disable_gemini_prompt:
        texts = prompts.enhance(texts)
    jobs = [replace(job, text=text) for job, text in zip(jobs, texts, strict=True)]
    pipeline = _load(chosen)
    for number, job in enumerate(jobs, start=1):
        if job.seed == -1:
            job = replace(job, seed=secrets.randbelow(2**31))
        prefix = f"[{number}/{len(jobs)}] " if len(jobs) > 1 else ""
        if guidances is not None:
            _draw_sheet(pipeline, job, *guidances, metadata=not chosen.no_metadata)
        else:
            _draw(pipeline, job, metadata=not chosen.no_metadata)
        _say(f"{prefix}{', '.join(str(output) for output in _written(job, guidances))} (seed {job.seed})")


def _written(job: Job, guidances: object) -> list[Any]:
    return job.outputs() if guidances is None else [job.output]


def _check_files(jobs: Sequence[Job]) -> None:
    """Refuse pictures that cannot be read and places that cannot be written, before anything is loaded."""
    from dsd_lightning.pictures import load_rgb

    for image in dict.fromkeys(job.image for job in jobs):
        if not image.is_file():
            raise GenerationError(f"image_path={image}: there is no such file")
        load_rgb(image)
    for job in jobs:
        if job.output.is_dir():
            raise GenerationError(f"output_path={job.output} is a folder; give the name of a .png file")
        folder = job.output.parent
        while not folder.exists():
            folder = folder.parent
        if not folder.is_dir() or not os.access(folder, os.W_OK):
            raise GenerationError(f"output_path={job.output}: {folder} cannot be written to; choose another place")


def _load(chosen: Any) -> TwoFramePipeline:
    from dsd_lightning.pipeline import TwoFramePipeline

    offload = "model" if chosen.model_offload else "sequential" if chosen.sequential_offload else None
    options: dict[str, Any] = {
        "quantize": chosen.quantize,
        "offload": offload,
        "device": chosen.device,
        "compile": chosen.compile,
        "merge_lora": not chosen.unmerged_lora,
    }
    if chosen.run is not None:
        return TwoFramePipeline.from_run(chosen.run, ema=not chosen.no_ema, **options)
    if chosen.model_path is not None:
        base = chosen.base_path or arguments.HUB_BASE
        return TwoFramePipeline.load(base, chosen.model_path, chosen.lora_path, **options)
    _say(
        "No model was named: using the shipped miniature (assets/tiny-flux and assets/tiny-dsd), which knows 64 x 64 pixel "
        "pictures of its own small world. --run or --model_path name another."
    )
    return TwoFramePipeline.tiny(**options)


def _options(job: Job) -> dict[str, Any]:
    size = dict(zip(("height", "width"), job.size, strict=True)) if job.size else {}
    return {"prompt": job.text, "num_inference_steps": job.steps, "guidance_scale": job.guidance, **size}


def _draw(pipeline: TwoFramePipeline, job: Job, metadata: bool) -> None:
    import torch

    from dsd_lightning.generation.pictures import save_png
    from dsd_lightning.pictures import load_rgb

    image, outputs = load_rgb(job.image), job.outputs()
    for first in range(0, job.num_images, AT_ONCE):
        seeds = [job.seed + index for index in range(first, min(first + AT_ONCE, job.num_images))]
        drawn = pipeline(  # type: ignore[union-attr]
            image,
            image_guidance=job.i_guidance,
            text_guidance=job.t_guidance,
            generator=[torch.Generator().manual_seed(seed) for seed in seeds],
            num_images_per_prompt=len(seeds),
            **_options(job),
        ).images
        for seed, picture in zip(seeds, drawn, strict=True):
            save_png(picture, outputs[seed - job.seed], _provenance(pipeline, job, seed) if metadata else None)


def _draw_sheet(
    pipeline: TwoFramePipeline, job: Job, image: Sequence[float], text: Sequence[float], metadata: bool
) -> None:
    import torch

    from dsd_lightning.generation.pictures import guidance_sheet, save_png
    from dsd_lightning.pictures import load_rgb
    from dsd_lightning.pipeline.inputs import fit

    reference = load_rgb(job.image)
    height, width = job.size or (None, None)
    latents = pipeline.draw_latents(1, height, width, torch.Generator().manual_seed(job.seed))
    rows = [
        [
            pipeline(reference, image_guidance=i, text_guidance=t, latents=latents, **_options(job)).images[0]  # type: ignore[union-attr]
            for t in text
        ]
        for i in image
    ]
    facts = _provenance(pipeline, job, job.seed) | {"image_guidance": list(image), "text_guidance": list(text)}
    shown = fit(reference, rows[0][0].height, rows[0][0].width)  # type: ignore[union-attr]
    save_png(guidance_sheet(shown, rows, image, text), job.output, facts if metadata else None)  # type: ignore[arg-type]


def _provenance(pipeline: TwoFramePipeline, job: Job, seed: int) -> dict[str, Any]:
    return {
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
