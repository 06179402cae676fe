"""Runs `python generate.py story`: from a first panel to a comic page, resuming from the files in the folder."""

from __future__ import annotations

import secrets
from argparse import Namespace
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from dsd_lightning.files.listing import is_url
from dsd_lightning.generation import models
from dsd_lightning.generation.generate import AT_ONCE, complete, generate_prompts, provenance
from dsd_lightning.generation.jobs import GenerationError, Job
from dsd_lightning.generation.provenance import read_provenance, save_image
from dsd_lightning.generation.story import arguments as story_arguments
from dsd_lightning.generation.story.arguments import FILE, PAGE, PANELS, REFERENCE
from dsd_lightning.generation.story.comic import comic_page
from dsd_lightning.generation.story.story import (
    Panel,
    Story,
    next_step,
    read_story,
    with_seeds,
    write_step,
    write_story,
)
from dsd_lightning.generation.story.tellers import MiniatureStoryteller, find_storyteller
from dsd_lightning.images.pixels import load_rgb
from dsd_lightning.pipeline.inputs import fit

if TYPE_CHECKING:
    from dsd_lightning.pipeline import TwoFramePipeline


def run(chosen: Namespace, say: Callable[[str], None]) -> None:
    """Run the command; `say` prints a line for the user.

    Raises:
        GenerationError, AgentFailure: an input that is refused, or a language model that gave no answer.
    """
    story_arguments.check(chosen)
    folder: Path = chosen.output_path
    settings = models.job_of(
        chosen, Path(REFERENCE), "this character", folder / PAGE
    )  # text and output differ by panel
    story = _opened(chosen)
    reference = _reference(chosen.image, folder)
    wanted = story_arguments.STEPS[: story_arguments.STEPS.index(chosen.stop_after) + 1]
    story = _written(story, reference, chosen, wanted, say)
    if "panels" not in wanted:
        say(f"{folder / FILE}: change what you like, then run the same command without --stop_after")
        return
    if models.is_miniature(chosen):
        say(models.MINIATURE)
    pipeline = models.load_model(chosen)
    settings = complete(settings, pipeline)
    height, width = pipeline.frame_size(*(settings.size or (None, None)))
    panels = [fit(reference, height, width)]
    for number, image in enumerate(_generated(pipeline, settings, story, reference, folder), start=2):
        panels.append(image)
        say(f"panel {number} of {story.panel_count}: {story.panels[number - 1].prompt}")
    if "page" in wanted:
        page = comic_page(panels, [panel.caption for panel in story.panels], story.idea)
        save_image(page, folder / PAGE, {"model": pipeline.config.model_name, "story": story.idea, "generated": True})
        say(str(folder / PAGE))


def _opened(chosen: Namespace) -> Story:
    """Return the story in the folder, or an empty one."""
    file = chosen.output_path / FILE
    if not file.is_file():
        return Story(chosen.panels or story_arguments.USUAL, chosen.idea)
    story = read_story(file)
    if chosen.panels not in (None, story.panel_count):
        raise GenerationError(
            f"--panels {chosen.panels}: {file} has {story.panel_count} panels; name another --output_path"
        )
    if chosen.idea not in ("", story.idea):
        raise GenerationError(
            f"--idea {chosen.idea}: {file} has idea={story.idea!r}; change it there, or --output_path"
        )
    return story


def _reference(given: Path | None, folder: Path) -> Image.Image:
    """Return the first panel, and keep it in the folder."""
    kept = folder / REFERENCE
    if given is None and not kept.is_file():
        raise GenerationError("give --image: the image that is the first panel")
    if given is not None and not given.is_file():
        reason = "a URL must be downloaded first" if is_url(str(given)) else "there is no such file"
        raise GenerationError(f"--image {given}: {reason}")
    image = load_rgb(given or kept)
    if kept.is_file() and not np.array_equal(np.asarray(image), np.asarray(load_rgb(kept))):
        raise GenerationError(
            f"--image {given}: the story in {folder} has another first panel; name another --output_path"
        )
    if not kept.is_file():
        save_image(image, kept, None)
    return image


def _written(
    story: Story, image: Image.Image, chosen: Namespace, wanted: Sequence[str], say: Callable[[str], None]
) -> Story:
    """Return the story with the missing steps among `wanted`; the file is written after each."""
    file = chosen.output_path / FILE
    if next_step(story) not in wanted:
        return story
    teller = find_storyteller(chosen.agents, chosen.offline, models.is_miniature(chosen))
    if isinstance(teller, MiniatureStoryteller):
        say("using the miniature world's own story (--agents NAME has a language model write one)")
    if teller is None:
        write_story(replace(story, panels=[Panel("", "")] * story.panel_count), file)
        raise GenerationError(
            f"there is no key for a language model to write the story: set GEMINI_API_KEY or OPENAI_API_KEY, name a model "
            f"with --agents, take the miniature world's story with --offline, or write captions and prompts into {file} "
            "yourself; then run the same command again"
        )
    with closing(teller):
        while (step := next_step(story)) is not None and step in wanted:
            story = write_step(teller, step, image, story)
            if step == "prompts":
                story = with_seeds(story, chosen.seed if chosen.seed != -1 else secrets.randbelow(2**31))
            write_story(story, file)
            say(f"{step}: written to {file}")
    return story


def _generated(
    pipeline: TwoFramePipeline, settings: Job, story: Story, reference: Image.Image, folder: Path
) -> Iterator[Image.Image]:
    """Yield all panels but the first; those that are missing or were generated otherwise are generated."""
    size = list(pipeline.frame_size(*(settings.size or (None, None))))
    todo = list(enumerate(story.panels))[1:]
    files = {index: folder / PANELS / f"{index + 1:02}.png" for index, _ in todo}

    def facts(panel: Panel) -> dict[str, Any]:
        return {**provenance(pipeline, replace(settings, text=panel.prompt), panel.seed), "size": size}

    missing = [
        index for index, panel in todo if not files[index].is_file() or read_provenance(files[index]) != facts(panel)
    ]
    batches = [missing[first : first + AT_ONCE] for first in range(0, len(missing), AT_ONCE)]
    starts = {batch[0]: batch for batch in batches}
    for index, _ in todo:
        if index in starts:
            panels = [story.panels[each] for each in starts[index]]
            results = generate_prompts(
                pipeline, settings, reference, [panel.prompt for panel in panels], [panel.seed for panel in panels]
            )
            for each, panel, result in zip(starts[index], panels, results, strict=True):
                save_image(result.image, files[each], facts(panel))
        yield load_rgb(files[index])
