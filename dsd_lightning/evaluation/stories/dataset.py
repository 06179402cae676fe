"""Reads ViStoryBench (arXiv 2505.24862): stories of shots with characters, each with reference images.

The layout is its dataset's: `NN/story.json` and `NN/image/CHARACTER/*.jpg`, in the folder itself or in `ViStory/` in it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dsd_lightning.evaluation.errors import EvaluationError
from dsd_lightning.evaluation.samples.benchmark import Case, Prompt, Subject
from dsd_lightning.files.listing import list_files
from dsd_lightning.files.text import read_text

LANGUAGES = ("en", "ch")

LITE = frozenset({1, 8, 9, 15, 17, 19, 24, 27, 28, 29, 32, 41, 52, 53, 55, 57, 60, 64, 68, 79})
"""Numbers of the stories of ViStoryBench-lite."""

SPLITS = ("full", "lite")

_ENDINGS = (".png", ".jpg", ".jpeg")


@dataclass(frozen=True)
class Character:
    """Someone or something that appears in a story.

    Attributes:
        key: its name in English, by which shots and folders name it.
        name: in the language that was chosen.
        description: of its looks.
        tag: realistic_human, unrealistic_human or non_human.
        references: images, the first of which style is compared with.
    """

    key: str
    name: str
    description: str
    tag: str
    references: tuple[Path, ...]


@dataclass(frozen=True)
class Shot:
    """One image to generate.

    Attributes:
        index: its number in the story.
        scene: the setting.
        plot: what happens.
        action: what is to be seen, without interpretation ("static shot description").
        camera: distance and angle.
        on_stage: keys of the characters that appear.
    """

    index: int
    scene: str
    plot: str
    action: str
    camera: str
    on_stage: tuple[str, ...]


@dataclass(frozen=True)
class Story:
    """Shots in their order, and the characters by key."""

    name: str
    kind: str
    shots: tuple[Shot, ...]
    characters: Mapping[str, Character]

    def first_references(self, shot: Shot) -> list[Path]:
        """Return the first reference of each character on stage.

        One without images is replaced by the story's first that has some; so is an empty stage. As in the published code.
        """
        fallback = [each.references[0] for each in self.characters.values() if each.references][:1]
        references = []
        for key in shot.on_stage:
            character = self.characters.get(key)
            references += [character.references[0]] if character is not None and character.references else fallback
        return references or fallback

    def prompt(self, shot: Shot) -> str:
        """Return the shot's prompt in the published order: camera, plot, action, the characters' looks, setting."""
        looks = [
            f"{self.characters[key].name} is {self.characters[key].description}"
            for key in shot.on_stage
            if key in self.characters
        ]
        return f"{shot.camera};{shot.plot};{shot.action};{';'.join(looks)};{shot.scene};"


@dataclass(frozen=True)
class StoryBenchmark:
    """Stories in numeric order."""

    name: str
    stories: tuple[Story, ...]

    def cases(self, copies: int = 1) -> list[Case]:
        """Return the images to generate, shot by shot; the reference is that of the first character on stage.

        Raises:
            EvaluationError: more than one copy, which the benchmark does not know, or a story without any reference.
        """
        if copies != 1:
            raise EvaluationError(f"copies={copies}: a story has one image a shot; leave it at 1")
        cases = []
        for story in self.stories:
            for shot in story.shots:
                references = story.first_references(shot)
                if not references:
                    raise EvaluationError(f"{self.name}: the story {story.name} has no reference image")
                prompt = Prompt(shot.index, story.prompt(shot), "shot")
                cases.append(Case(Subject(story.name, story.kind, references[0], (prompt,)), prompt))
        return cases


def vistorybench(
    folder: str | Path, language: str = "en", split: str = "full", stories: int | None = None
) -> StoryBenchmark:
    """Read a copy of ViStoryBench's dataset (https://huggingface.co/datasets/ViStoryBench/ViStoryBench).

    Args:
        folder: with the stories' numbered folders in it, or in `ViStory/` or `data/dataset/ViStory/` below it.
        language: en or ch.
        split: full, or lite for its 20 stories.
        stories: how many to take, from the first; None takes all.

    Raises:
        EvaluationError: no stories there, an unknown language or split, or a story that is not of the format; the message
            names the file and what is missing.
        TextError: a story that is not UTF-8.
    """
    if language not in LANGUAGES or split not in SPLITS:
        raise EvaluationError(
            f"language={language!r}, split={split!r}: choose of {', '.join(LANGUAGES)} and of {', '.join(SPLITS)}"
        )
    if stories is not None and stories < 1:
        raise EvaluationError(f"stories={stories}: at least 1, or null for all")
    root = next((each for each in _roots(Path(folder)) if _numbered(each)), None)
    if root is None:
        raise EvaluationError(
            f"{folder} is no copy of ViStoryBench: there is no folder NN/ with a story.json in it, in ViStory/ or in "
            "data/dataset/ViStory/"
        )
    chosen = [each for each in _numbered(root) if split == "full" or int(each.name) in LITE][:stories]
    if not chosen:
        raise EvaluationError(f"{root} holds no story of split={split}")
    return StoryBenchmark("ViStoryBench", tuple(_story(each, language) for each in chosen))


def _roots(folder: Path) -> tuple[Path, ...]:
    return folder, folder / "ViStory", folder / "data" / "dataset" / "ViStory"


def _numbered(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    return sorted(
        (each for each in folder.iterdir() if each.name.isdigit() and (each / "story.json").is_file()),
        key=lambda each: int(each.name),
    )


def _story(folder: Path, language: str) -> Story:
    file = folder / "story.json"
    try:
        content = json.loads(read_text(file).removeprefix("\ufeff"))
        characters = {key: _character(folder, key, each, language) for key, each in content["Characters"].items()}
        shots = tuple(_shot(each, language) for each in content["Shots"])
        kind = content.get("Story_type", {}).get(language, "story")
    except json.JSONDecodeError as error:
        raise EvaluationError(f"{file} is not JSON: {error}") from error
    except KeyError as error:
        raise EvaluationError(f"{file}: {error} is missing (language={language})") from error
    except (AttributeError, TypeError, ValueError) as error:
        raise EvaluationError(f"{file} is no story of ViStoryBench: {error}") from error
    if not shots:
        raise EvaluationError(f"{file} has no shots")
    return Story(folder.name, str(kind), shots, characters)


def _character(folder: Path, key: str, values: Mapping[str, Any], language: str) -> Character:
    place = folder / "image" / key
    references = tuple(list_files(place, _ENDINGS)) if place.is_dir() else ()
    name, description = values.get(f"name_{language}", key), values.get(f"prompt_{language}", "")
    return Character(key, str(name), str(description), str(values.get("tag", "")), references)


def _shot(values: Mapping[str, Any], language: str) -> Shot:
    return Shot(
        index=int(values["index"]),
        scene=str(values["Setting Description"][language]),
        plot=str(values["Plot Correspondence"][language]),
        action=str(values["Static Shot Description"][language]),
        camera=str(values["Shot Perspective Design"][language]),
        # Keys are English in every language.
        on_stage=tuple(str(key).strip() for key in values["Characters Appearing"]["en"]),
    )
