"""Runs `python generate.py`: checks inputs, loads the model, generates and writes images, returns an exit code."""

from __future__ import annotations

import logging
import os
import secrets
import sys
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from dsd_lightning.generation import arguments, models
from dsd_lightning.generation.jobs import GenerationError, Job, one_line, parse_size, read_jobs, with_seed
from dsd_lightning.generation.story import arguments as story_arguments

if TYPE_CHECKING:
    from dsd_lightning.pipeline import TwoFramePipeline

REFUSED, NO_MEMORY, INTERRUPTED = 2, 3, 130
"""Exit codes beside 0."""

STORY = "story"
"""First word of a command line for a comic."""


def main(given: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code.

    Inputs are checked before the model is loaded, sizes before the first image. HYDRA_FULL_ERROR=1 shows tracebacks, as
    in the other commands.
    """
    given = sys.argv[1:] if given is None else given
    is_story = list(given[:1]) == [STORY]
    chosen = story_arguments.parser().parse_args(given[1:]) if is_story else arguments.parser().parse_args(given)
    logging.basicConfig(format="%(levelname)s: %(message)s", level=logging.WARNING, stream=sys.stderr)
    from dsd_lightning.cli.errors import FULL_ERROR, message_for_user  # here, for --help to be quick
    from dsd_lightning.pipeline import memory

    try:
        if is_story:
            from dsd_lightning.generation.story.command import run

            run(chosen, say)
        else:
            _run(chosen)
    except KeyboardInterrupt:
        again = "the same command" if is_story else "--jobs"
        return _end(f"stopped; finished images are kept, and {again} resumes", INTERRUPTED)
    except Exception as error:
        if memory.is_out_of_memory(error):
            return _end(f"error: {memory.NO_MEMORY}", NO_MEMORY)
        message = message_for_user(error)
        if message is None or os.environ.get(FULL_ERROR) == "1":
            raise
        return _end(f"error: {message}", REFUSED)
    return 0


def _end(message: str, code: int) -> int:
    sys.stderr.write(f"\n{_printable(message)}\n")
    return code


def say(message: str) -> None:
    """Write a line for the user."""
    sys.stdout.write(_printable(message) + "\n")
    sys.stdout.flush()


def _printable(message: str) -> str:
    """Return a text whose control characters, which a terminal would obey, are written as Python writes them."""
    return "".join(each if each.isprintable() or each == "\n" else ascii(each)[1:-1] for each in message)


def _run(chosen: Any) -> None:
    from dsd_lightning.generation.generate import complete
    from dsd_lightning.generation.prompts import enhanced

    arguments.check(chosen)
    guidances = None if chosen.sheet is None else arguments.sheet_of(chosen.sheet)
    jobs = _jobs(chosen)
    check_files(jobs)
    if not jobs:
        return
    given = [one_line(job.text) for job in jobs]
    miniature = models.is_miniature(chosen)
    texts = given if chosen.disable_gemini_prompt else enhanced(jobs, chosen.agents, miniature)
    if miniature:
        say(models.MINIATURE)
    pipeline = models.load_model(chosen)
    check_sizes(pipeline, jobs)
    jobs = [complete(job, pipeline) for job in jobs]
    for number, (job, text, own) in enumerate(zip(jobs, texts, given, strict=True), start=1):
        job = with_seed(replace(job, text=text), secrets.randbelow(2**31))
        prefix = f"[{number}/{len(jobs)}] " if len(jobs) > 1 else ""
        if text != own:
            say(f"{prefix}prompt: {text}")
        _generate(pipeline, job, own, guidances, metadata=not chosen.no_metadata, keep=chosen.jobs is not None)
        outputs = job.outputs() if guidances is None else [job.output]
        say(f"{prefix}{', '.join(map(str, outputs))} (seed {job.seed})")


def _jobs(chosen: Any) -> list[Job]:
    """Return the jobs whose images do not exist yet."""
    if chosen.jobs is None:
        return [models.job_of(chosen, chosen.image_path, chosen.text, chosen.output_path, chosen.num_images)]
    defaults = {name: getattr(chosen, name) for name in ("seed", "num_images", "guidance", "i_guidance", "t_guidance")}
    listed = read_jobs(chosen.jobs, defaults | {"steps": chosen.steps, "size": parse_size(chosen.size)})
    jobs = [job for job in listed if not all(output.is_file() for output in job.outputs())]
    if len(jobs) < len(listed):
        say(f"{len(listed) - len(jobs)} of {len(listed)} jobs are done already")
    return jobs


def _generate(
    pipeline: TwoFramePipeline,
    job: Job,
    given: str,
    guidances: tuple[list[float], list[float]] | None,
    metadata: bool,
    keep: bool,
) -> None:
    """Generate and write the images of a job; `keep` leaves images that exist as they are."""
    from dsd_lightning.generation.generate import generate, generate_sheet, provenance
    from dsd_lightning.generation.provenance import save_image
    from dsd_lightning.images.pixels import load_rgb

    reference = load_rgb(job.image)
    if guidances is None:
        for result, output in zip(generate(pipeline, job, reference), job.outputs(), strict=True):
            if keep and output.is_file():
                continue
            save_image(result.image, output, provenance(pipeline, job, result.seed, given) if metadata else None)
        return
    image, text = guidances
    facts = {**provenance(pipeline, job, job.seed, given), "image_guidance": image, "text_guidance": text}
    save_image(generate_sheet(pipeline, job, reference, image, text), job.output, facts if metadata else None)


def check_sizes(pipeline: TwoFramePipeline, jobs: Sequence[Job]) -> None:
    """Refuse sizes that the model has no frames of, before the first image is generated."""
    for job in jobs:
        if job.size is not None:
            try:
                pipeline.codec.require_size(*job.size)
            except ValueError as error:
                raise GenerationError(f"output_path={job.output}: {error}") from error


def check_files(jobs: Sequence[Job]) -> None:
    """Refuse images that cannot be read, all of them by name, and places that cannot be written."""
    from dsd_lightning.files.listing import together
    from dsd_lightning.images.pixels import ImageError, load_rgb

    problems = []
    for image in dict.fromkeys(job.image for job in jobs):
        try:
            load_rgb(image)
        except FileNotFoundError:
            problems.append(f"image_path={image}: there is no such file")
        except ImageError as error:
            problems.append(str(error))
    if problems:
        raise GenerationError(together(problems))
    for job in jobs:
        if job.output.is_dir():
            raise GenerationError(f"output_path={job.output} is a folder; give the name of an image file")
        folder = job.output.parent
        while not folder.exists():
            folder = folder.parent
        if not folder.is_dir() or not os.access(folder, os.W_OK):
            raise GenerationError(f"output_path={job.output}: {folder} cannot be written to; choose another place")
