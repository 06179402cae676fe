"""Shows that a story goes from a first panel to a comic page, with every text in a file that may be edited."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from rehearsal_server import Asked, RehearsalServer

from dsd_lightning.generation.command import REFUSED, main
from dsd_lightning.generation.jobs import GenerationError
from dsd_lightning.generation.story.arguments import FEWEST, MOST
from dsd_lightning.generation.story.comic import LEAST_SIDE, PAPER, comic_page
from dsd_lightning.generation.story.story import Panel, Story, read_story, write_story
from dsd_lightning.generation.story.tellers import MiniatureStoryteller
from dsd_lightning.miniature.world import Context

pytestmark = pytest.mark.usefixtures("without_keys")

QUICK = ["--steps", "1", "--size", "32", "--device", "cpu"]


def run_story(*flags: str) -> int:
    return main(["story", *QUICK, *flags])


def edit(change: Callable[[dict[str, Any]], None]) -> None:
    file = Path("story/story.json")
    content = json.loads(file.read_text())
    change(content)
    file.write_text(json.dumps(content))


def times() -> dict[str, int]:
    return {file.name: file.stat().st_mtime_ns for file in Path("story/panels").iterdir()}


def test_a_page_from_one_image_and_only_edited_panels_are_generated_again(
    image: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_story("--image", str(image), "--idea", "Out", "--panels", "3", "--seed", "5") == 0
    story = read_story(Path("story/story.json"))
    assert [panel.seed for panel in story.panels] == [5, 6, 7]
    assert all(panel.prompt.startswith("this character, ") for panel in story.panels[1:])
    before, page = times(), Path("story/page.png").read_bytes()
    assert sorted(before) == ["02.png", "03.png"], "the first panel is the given image"

    edit(lambda content: content["panels"][2].update(prompt="this character, small", caption="The end."))
    assert run_story() == 0
    after = times()
    assert (after["02.png"] == before["02.png"], after["03.png"] == before["03.png"]) == (True, False)
    assert Path("story/page.png").read_bytes() != page

    capsys.readouterr()
    image.write_bytes(b"")
    Image.new("RGB", (50, 50)).save(image)
    assert run_story("--image", str(image)) == REFUSED
    assert "has another first panel" in capsys.readouterr().err
    assert run_story("--panels", "4") == REFUSED
    assert "has 3 panels" in capsys.readouterr().err


def conversation(asked: Asked) -> str:
    """Answer the three turns; the second and third repeat earlier answers."""
    if asked.images and len(asked.turns) == 1:
        return "a knight"
    said = [text for role, text in asked.turns if role == "assistant"]
    if len(said) == 1:
        return f"Gladly! ```json\n{json.dumps([f'{said[0]} {number}' for number in range(3)])}\n```"
    events = json.loads(said[1])
    return json.dumps([{"caption": f"{text}.", "prompt": f"{text} in a wood"} for text in events])


@pytest.fixture
def agents() -> Iterator[list[str]]:
    with RehearsalServer(conversation) as server:
        yield ["--agents", "local", "agents.vlm.provider.model=m", f"agents.vlm.provider.base_url={server.url}/v1"]


def test_a_language_model_writes_it_in_three_steps_and_follows_edits(
    image: Path, agents: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    start = ["--image", str(image), "--panels", "3", *agents]
    assert run_story(*start, "--stop_after", "character") == 0
    assert read_story(Path("story/story.json")).character == "a knight"
    assert "run the same command" in capsys.readouterr().out
    edit(lambda content: content.update(character="a queen"))
    assert run_story(*start, "--stop_after", "story") == 0
    assert read_story(Path("story/story.json")).story == ["a queen 0", "a queen 1", "a queen 2"]
    edit(lambda content: content["story"].__setitem__(1, "a castle"))
    assert run_story(*start, "--stop_after", "prompts") == 0
    panels = read_story(Path("story/story.json")).panels
    assert [(panel.caption, panel.prompt) for panel in panels][1] == ("a castle.", "a castle in a wood")
    assert not Path("story/panels").exists()


def test_answers_of_the_wrong_form_are_requested_again_and_then_refused(
    image: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with RehearsalServer(lambda asked: "a knight" if asked.images and len(asked.turns) == 1 else '["one"]') as server:
        agents = ["--agents", "local", "agents.vlm.provider.model=m", f"agents.vlm.provider.base_url={server.url}/v1"]
        assert run_story("--image", str(image), "--panels", "3", *agents) == REFUSED
        assert server.counts["answered"] == 4
    assert "no usable answer in 3 attempts (1 panels instead of 3)" in capsys.readouterr().err


def test_without_a_key_other_models_get_a_file_to_fill_in(
    image: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--image", str(image), "--panels", "2", "--run", str(tmp_path)]
    assert run_story(*flags) == REFUSED
    assert "write captions and prompts into story/story.json" in capsys.readouterr().err
    assert run_story(*flags) == REFUSED
    assert "panel 2 has no prompt" in capsys.readouterr().err
    edit(lambda content: content["panels"][1].update(prompt="a hat"))
    assert run_story(*flags) == REFUSED
    assert "is no run folder" in capsys.readouterr().err, "the story is complete; the model is next"


@pytest.mark.parametrize("count", [FEWEST, 5, MOST])
def test_the_miniature_world_has_stories_of_any_length_in_its_own_words(count: int) -> None:
    teller, image = MiniatureStoryteller(), Image.new("RGB", (8, 8))
    story = Story(count, character=teller.character(image, Story(count)))
    story = Story(count, character=story.character, story=teller.story(image, story))
    panels = teller.panels(image, story)
    assert len(panels) == len({panel.caption for panel in panels}) == count
    vocabulary = {word for words in Context.vocabulary.values() for word in words}
    vocabulary |= {"this", "character", "in", "the", "on", "a", "at", "background", "light", "from", "tilted", "warm"}
    for panel in panels[1:]:
        assert set(panel.prompt.replace(",", "").split()) <= vocabulary


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"colour": "red"}, "colour is an unknown entry"),
        ({"panel_count": "two"}, "panel_count='two' should be a valid integer"),
        ({"panels": [{"caption": "x"}, {"caption": "x", "prompt": "y"}]}, "panels, entry 1, prompt is missing"),
        ({"panels": [{"caption": "x", "prompt": "y"}]}, "1 entries in panels, but panel_count is 2"),
        ({"panels": ["x", "y"]}, "panels, entry 1='x' should be a dictionary"),
        ({"story": [1, 2]}, "story, entry 1=1 should be a valid string"),
        (
            {"panels": [{"caption": "x", "prompt": "y", "seed": 1.5}] * 2},
            "panels, entry 1, seed=1.5 should be a valid integer",
        ),
    ],
)
def test_a_broken_file_is_refused_by_entry(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    file = tmp_path / "story.json"
    write_story(Story(2, panels=[Panel("a", "b"), Panel("c", "d", 1)]), file)
    assert read_story(file).panels[1] == Panel("c", "d", 1)
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    with pytest.raises(GenerationError, match=message):
        read_story(file)
    file.write_text("{")
    with pytest.raises(GenerationError, match="cannot be read as JSON"):
        read_story(file)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--panels", "1"], "--panels 1: a page has"),
        ([], "give --image"),
        (["--image", "none.png"], "none.png: there is no such file"),
        (["--image", "a.png", "--offline", "--agents", "local"], "choose one of --offline and --agents"),
        (["--image", "a.png", "--output_path", "a.png"], "is a file"),
        (["--image", "a.png", "--t_guidance", "nan"], "must be finite"),
    ],
)
def test_refused_flags(image: Path, capsys: pytest.CaptureFixture[str], flags: list[str], message: str) -> None:
    assert run_story(*flags) == REFUSED
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("count", [1, 2, 5, 9, 12])
def test_a_page_shows_every_panel_completely_and_in_order(count: int) -> None:
    shades = [20 * number for number in range(count)]
    page = np.asarray(
        comic_page([Image.new("RGB", (32, 32), (0, 255, shade)) for shade in shades], ["words " * 30] * count)
    )
    areas = [int((page == (0, 255, shade)).all(-1).sum()) for shade in shades]
    assert areas == [LEAST_SIDE**2] * count
    first = [tuple(np.argwhere((page == (0, 255, shade)).all(-1))[0]) for shade in shades]
    assert first == sorted(first)
    assert (page[-30:] == PAPER).all()
    assert (page[:, -30:] == PAPER).all()
    assert (page[:, :30] == PAPER).all(), "no letter leaves the page"
