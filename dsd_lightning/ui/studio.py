"""Carries out the page's requests: checks fields, generates images, writes stories."""

from __future__ import annotations

import json
import math
import secrets
import threading
from collections.abc import Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image

from dsd_lightning.agents import AuthenticationFailed
from dsd_lightning.agents.presets import find_agent
from dsd_lightning.generation.generate import AT_ONCE, generate, generate_prompts, generate_sheet, provenance
from dsd_lightning.generation.jobs import GenerationError, Job, one_line
from dsd_lightning.generation.prompts import cropped, enhance
from dsd_lightning.generation.provenance import PROVENANCE
from dsd_lightning.generation.story.arguments import FEWEST, MOST
from dsd_lightning.generation.story.comic import comic_page
from dsd_lightning.generation.story.story import Panel, Story, Storyteller, next_step, story_of, with_seeds, write_step
from dsd_lightning.generation.story.tellers import find_storyteller
from dsd_lightning.images.pixels import ImageError, load_rgb, upright_size
from dsd_lightning.pipeline.inputs import fit

if TYPE_CHECKING:
    from dsd_lightning.pipeline import TwoFramePipeline

MOST_PIXELS = 64_000_000
"""Pixels of an uploaded image."""

MOST_LETTERS, MOST_STEPS, MOST_CELLS, MOST_IMAGES = 2000, 100, 25, 4
"""Limits of a prompt or a story's text, of an image, of a guidance sheet, of a request."""

HIGHEST_GUIDANCE, LARGEST_SEED = 20.0, 2**31 - 1


@dataclass(frozen=True)
class Settings:
    """The fields that all tabs share, unchecked as they come from the page."""

    guidance: Any
    image_guidance: Any
    text_guidance: Any
    steps: Any
    seed: Any


@dataclass(frozen=True)
class GeneratedImage:
    """A result: the cropped reference, the reconstructed reference, and the generated image."""

    reference: Image.Image
    reconstructed: Image.Image | None
    result: Image.Image
    seed: int
    prompt: str
    note: str
    """A message for the user; "" for none."""


class Studio:
    """A loaded model and, if there is a key, a language model; handles one request at a time.

    Args:
        pipeline: the model.
        miniature: whether it is the shipped miniature, which knows only the words of its own world.
        agents: see `presets.find_settings`.
    """

    def __init__(self, pipeline: TwoFramePipeline, miniature: bool, agents: Sequence[str] | None = None) -> None:
        self.pipeline = pipeline
        self.miniature = miniature
        self.agents = agents
        self._busy = threading.Lock()
        pipeline.set_progress_bar_config(desc="steps")

    @property
    def name(self) -> str:
        """Return the model's name."""
        return str(self.pipeline.config.model_name)

    def generate(
        self,
        file: str | None,
        text: str,
        prompt_enhancement: bool,
        settings: Settings,
        size: str | None = None,
        count: Any = 1,
    ) -> list[GeneratedImage]:
        """Return images of the reference's subject, with seeds counted up.

        Args:
            file, text, prompt_enhancement, settings: the fields.
            size: height and width of a frame, pixels, as "512x768"; None or "" for that of training.
            count: of the images.

        Raises:
            GenerationError: naming the field.
        """
        job, reference = self._job(settings, text), self._image(file)
        frame_size, number = self._size(size), int(_within("images", count, 1, MOST_IMAGES))
        prompt, note = self._prompt(job, reference) if prompt_enhancement else (job.text, "")
        job = replace(self._job(settings, prompt, job.seed), size=frame_size, num_images=number)
        with self._busy:
            results = list(generate(self.pipeline, job, reference))
        for result in results:
            facts = provenance(self.pipeline, job, result.seed, one_line(text))
            result.image.info[PROVENANCE] = json.dumps(facts, sort_keys=True)
        frame = fit(reference, results[0].image.height, results[0].image.width)
        return [GeneratedImage(frame, each.reconstructed, each.image, each.seed, prompt, note) for each in results]

    def sizes(self) -> list[str]:
        """Return the frame sizes (height x width, pixels) that the page offers: of training first, then larger ones."""
        short = self.pipeline.config.default_size
        long = short * 3 // 2
        return [f"{height}x{width}" for height, width in ((short, short), (short, long), (long, short), (long, long))]

    def _size(self, size: str | None) -> tuple[int, int] | None:
        if not size:
            return None
        if size not in self.sizes():
            raise GenerationError(f"size: {size!r} is not offered; choose one of {', '.join(self.sizes())}")
        height, width = size.split("x")
        return int(height), int(width)

    def sheet(
        self, file: str | None, text: str, image_guidances: Any, text_guidances: Any, settings: Settings
    ) -> tuple[Image.Image, int]:
        """Return a sheet over lists of image and text guidances, in ascending order, all from one noise, and its seed.

        Raises:
            GenerationError: naming the field.
        """
        image, words = _guidances("image guidances", image_guidances), _guidances("text guidances", text_guidances)
        if len(image) * len(words) > MOST_CELLS:
            raise GenerationError(
                f"{len(image)} image guidances by {len(words)} text guidances: at most {MOST_CELLS} images a sheet"
            )
        job, reference = self._job(settings, text), self._image(file)
        with self._busy:
            return generate_sheet(self.pipeline, job, reference, image, words), job.seed

    def write_story(self, file: str | None, idea: str, panels: Any, seed: Any) -> Story:
        """Return a story whose first panel is the image in `file`, with all its prompts.

        Raises:
            GenerationError, AgentFailure: naming the field, or the model that gave no answer.
        """
        count = int(_within("panels", panels, FEWEST, MOST))
        chosen = _seed(seed)
        image = self._image(file)
        story = Story(count, one_line(_short("idea", idea)))
        with closing(self._teller()) as teller:
            while (step := next_step(story)) is not None:
                story = write_step(teller, step, image, story)
        return with_seeds(story, chosen)

    def generate_story(
        self, file: str | None, idea: str, rows: Sequence[Sequence[Any]], settings: Settings
    ) -> Image.Image:
        """Return the comic page of a story.

        Args:
            file: the first panel.
            idea: title of the page.
            rows: caption, prompt and seed of every panel, as edited; the first's prompt is not used.
            settings: of all panels; the seed is not used.

        Raises:
            GenerationError: naming the panel.
        """
        panels = self._panels(rows)
        title = one_line(_short("idea", idea))
        job, reference = self._job(settings, panels[1].prompt), self._image(file)
        height, width = self.pipeline.frame_size(None, None)
        images = [fit(reference, height, width)]
        with self._busy:
            for first in range(1, len(panels), AT_ONCE):
                batch = panels[first : first + AT_ONCE]
                prompts, seeds = [panel.prompt for panel in batch], [panel.seed for panel in batch]
                images += [each.image for each in generate_prompts(self.pipeline, job, reference, prompts, seeds)]
        return comic_page(images, [panel.caption for panel in panels], title)

    def _panels(self, rows: Sequence[Sequence[Any]]) -> list[Panel]:
        if not FEWEST <= len(rows) <= MOST:
            raise GenerationError(f"the story has {len(rows)} panels; a page has {FEWEST} to {MOST}: write it first")
        entries = []
        for number, row in enumerate(rows, start=1):
            if len(row) != 3:
                raise GenerationError(f"panel {number}: give caption, prompt and seed")
            caption, prompt = (_short(f"panel {number}", text) for text in row[:2])
            entries.append({"caption": caption, "prompt": prompt, "seed": _seed(row[2], f"panel {number}: seed")})
        return story_of({"panel_count": len(entries), "panels": entries}, "the story").panels

    def _teller(self) -> Storyteller:
        teller = find_storyteller(self.agents, offline=False, miniature=self.miniature)
        if teller is None:
            raise GenerationError("there is no key for a language model to write the story")
        return teller

    def _prompt(self, job: Job, reference: Image.Image) -> tuple[str, str]:
        if self.miniature and not self.agents:
            return job.text, "not enhanced: the shipped miniature knows only the words of its own world"
        try:
            agent = find_agent(self.agents)
        except AuthenticationFailed as failure:
            return job.text, f"not enhanced: {failure}"
        with agent:
            prompt = enhance(agent, [cropped(reference, None)], [job.text])[0]
        return prompt, "not enhanced: the language model gave no usable answer" if prompt == job.text else ""

    def _job(self, settings: Settings, text: str, seed: int | None = None) -> Job:
        """Return the job that the fields describe; the seed is random if the field holds -1."""
        text = one_line(_short("prompt", text))
        if not text:
            raise GenerationError("prompt: it is empty; describe the image")
        return Job(
            image=Path("upload"),
            text=text,
            output=Path("result.png"),
            seed=_seed(settings.seed) if seed is None else seed,
            guidance=float(_within("guidance", settings.guidance, 0, HIGHEST_GUIDANCE)),
            i_guidance=float(_within("image guidance", settings.image_guidance, 0, HIGHEST_GUIDANCE)),
            t_guidance=float(_within("text guidance", settings.text_guidance, 0, HIGHEST_GUIDANCE)),
            steps=int(_within("steps", settings.steps, 1, MOST_STEPS)),
        )

    def _image(self, file: str | None) -> Image.Image:
        if not file:
            raise GenerationError("reference: upload an image first")
        try:
            width, height = upright_size(file)
            if width * height > MOST_PIXELS:
                raise GenerationError(
                    f"reference: {width * height} pixels are more than {MOST_PIXELS}; make it smaller first"
                )
            return load_rgb(file)
        except ImageError as error:  # whose message names a file of this machine, which the visitor does not know
            raise GenerationError(f"reference: {str(error).replace(file, 'this file')}") from error


def _within(name: str, value: Any, least: int | float, most: int | float) -> int | float:
    """Return a number, refusing other values and those out of range."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise GenerationError(f"{name}: {value!r} is no number")
    if not least <= value <= most:
        raise GenerationError(f"{name}: {value:g} must be {least:g} to {most:g}")
    return float(value)


def _guidances(name: str, values: Any) -> list[float]:
    """Return a list's guidances in ascending order, each once."""
    if not isinstance(values, list) or not values:
        raise GenerationError(f"{name}: choose one or more")
    return sorted({float(_within(name, value, 0, HIGHEST_GUIDANCE)) for value in values})


def _seed(value: Any, name: str = "seed") -> int:
    """Return a seed; a random one for -1."""
    with suppress(TypeError, ValueError):
        value = float(value)  # cells of the table are texts
    chosen = int(_within(name, value, -1, LARGEST_SEED))
    return secrets.randbelow(LARGEST_SEED) if chosen == -1 else chosen


def _short(name: str, text: Any) -> str:
    text = "" if text is None else str(text)
    if len(text) > MOST_LETTERS:
        raise GenerationError(f"{name}: {len(text)} letters are more than {MOST_LETTERS}")
    return text
