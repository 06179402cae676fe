"""Stories and tables of jobs from elsewhere run no code, overwrite nothing, and send no orders to the terminal."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from dsd_lightning.files.rows import TableError
from dsd_lightning.generation.command import REFUSED, main
from dsd_lightning.generation.jobs import GenerationError, read_jobs
from dsd_lightning.generation.story.arguments import MOST
from dsd_lightning.generation.story.comic import comic_page
from dsd_lightning.generation.story.story import LONGEST, read_story

pytestmark = pytest.mark.usefixtures("without_keys")

SCRIPT = '<script>alert("1")</script>'
ORDERS = "\x1b]0;owned\x07\x1b[2J\x9b31m"
"""Sets a terminal's title, clears it, and colours what follows."""
QUICK = ["--steps", "1", "--size", "32", "--device", "cpu"]


class Canary:
    """Pickled, it leaves a file when it is loaded."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.file,)


def story(**change: Any) -> dict[str, Any]:
    panels = [{"caption": "a", "prompt": "b", "seed": 1}, {"caption": "c", "prompt": "d", "seed": 2}]
    return {"panel_count": 2, "panels": panels, **change}


# --- Stories.


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (json.dumps(story(panel_count=10**9, panels=[])), f"panel_count=1000000000 should be .* equal to {MOST}"),
        (json.dumps(story(panel_count=-1, panels=[])), "panel_count=-1 should be greater than or equal to 2"),
        (json.dumps(story(panels=[{"caption": "", "prompt": "b", "seed": 2**70}] * 2)), "seed=1180591620717411303424"),
        (json.dumps(story(panels=[{"caption": "", "prompt": "b", "seed": -1}] * 2)), "seed=-1 should be greater"),
        (json.dumps(story(panels=[{"caption": "x" * (LONGEST + 1), "prompt": "b"}] * 2)), r"x\.\.\. .*5000 characters"),
        (json.dumps(story(idea="x" * (LONGEST + 1))), "idea=.* at most 5000 characters"),
        (json.dumps(story(_target_="os.system")), "_target_ is an unknown entry"),
        (json.dumps(story(panels=[{"__class__": "Panel", "caption": "", "prompt": "b"}] * 2)), "__class__ is an unknown"),
        ('{"panel_count": ' + "9" * 5000 + "}", "cannot be read as JSON"),
        ("[" * 100_000, "cannot be read as JSON"),
        ("[]", "a JSON object is needed"),
    ],
)  # fmt: skip
def test_a_story_beyond_all_bounds_is_refused(content: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "story.json").write_text(content)
    with pytest.raises(GenerationError, match=message):
        read_story(tmp_path / "story.json")


def test_a_pickle_for_a_story_is_refused_and_not_loaded(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "story").mkdir()
    (tmp_path / "story" / "story.json").write_bytes(pickle.dumps(Canary(tmp_path / "canary")))
    assert main(["story", *QUICK]) == REFUSED
    assert "story.json" in capsys.readouterr().err
    assert not (tmp_path / "canary").exists()


def test_texts_of_a_story_stay_texts(image: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    texts = f"{SCRIPT}{ORDERS} ../../{{0.__class__}} %s"
    panels = [{"caption": texts, "prompt": texts, "seed": 1}] * 2
    folder = tmp_path / "in" / "story"
    folder.mkdir(parents=True)
    (folder / "story.json").write_text(json.dumps(story(idea=texts, panels=panels)))
    assert main(["story", *QUICK, "--image", str(image), "--output_path", str(folder)]) == 0
    printed = "".join(capfd.readouterr())
    assert SCRIPT in printed
    assert not set(printed) & {"\x1b", "\x07", "\x9b"}
    assert {file.name for file in folder.rglob("*")} == {"story.json", "reference.png", "panels", "02.png", "page.png"}
    assert {each.name for each in tmp_path.iterdir()} == {"in", image.name}, "nothing was written beside the folder"


def test_a_long_caption_without_a_blank_is_broken_into_lines() -> None:
    page = comic_page([Image.new("RGB", (64, 64))] * 2, ["x" * LONGEST] * 2, "x" * LONGEST)
    assert page.height < 65_500, "formats end there"


# --- Tables of jobs.


def table(folder: Path, *rows: dict[str, Any]) -> Path:
    file = folder / "jobs.jsonl"
    file.write_text("\n".join(json.dumps(row) for row in rows))
    return file


@pytest.mark.parametrize("name", ["jobs.parquet", "jobs.json", "jobs.jsonl", "jobs.csv", "jobs.tsv", "jobs.pkl"])
def test_a_pickle_for_a_table_is_refused_and_not_loaded(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / name).write_bytes(pickle.dumps(Canary(tmp_path / "canary")))
    assert main(["--jobs", str(tmp_path / name), *QUICK]) == REFUSED
    assert name in capsys.readouterr().err
    assert not (tmp_path / "canary").exists()


@pytest.mark.parametrize("where", ["{0}/precious", "../precious", "x/../../precious"])
def test_a_table_overwrites_nothing(where: str, image: Path, tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    for name in ("precious.png", "precious_1.png"):
        (tmp_path / name).write_bytes(b"dear to someone")
    output = where.format(tmp_path) + ".png"
    row = {"image_path": str(image), "text": "a hat", "output_path": output}
    for count in (1, 2):
        file = table(folder, {**row, "num_images": count})
        assert main(["--jobs", str(file), *QUICK, "--disable_gemini_prompt"]) == 0
    assert (tmp_path / "precious.png").read_bytes() == b"dear to someone"
    assert (tmp_path / "precious_1.png").read_bytes() == b"dear to someone"
    assert Image.open(tmp_path / "precious_2.png").size == (32, 32)


@pytest.mark.parametrize("output", ["/etc/cron.d/owned", "../.ssh/authorized_keys", "x.png/../.bashrc", "o.py", ".png"])
def test_a_table_writes_nothing_but_images(output: str, image: Path, tmp_path: Path) -> None:
    with pytest.raises(GenerationError, match=r"images are written as \.png"):
        read_jobs(table(tmp_path, {"image_path": image.name, "text": "a hat", "output_path": output}), {})


def test_a_link_at_the_place_of_an_image_is_replaced_and_not_followed(image: Path, tmp_path: Path) -> None:
    (tmp_path / "o.png").symlink_to(tmp_path / "elsewhere.png")
    file = table(tmp_path, {"image_path": image.name, "text": "a hat", "output_path": "o.png"})
    assert main(["--jobs", str(file), *QUICK, "--disable_gemini_prompt"]) == 0
    assert not (tmp_path / "elsewhere.png").exists()
    assert not (tmp_path / "o.png").is_symlink()


@pytest.mark.parametrize(
    "change",
    [
        {"image_path": "a\0.png"},
        {"output_path": "o\0.png"},
        {"output_path": "x" * 5000 + ".png"},
        {"seed": 10**400},
        {"num_images": 10**12},
        {"steps": 10**12},
        {"size": "999999999999"},
        {"text": {"_target_": "os.system"}},
        {"_target_": "os.system"},
    ],
    ids=str,
)
def test_senseless_values_are_refused_without_a_traceback(
    change: dict[str, Any], image: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = table(tmp_path, {"image_path": image.name, "text": "a hat", "output_path": "o.png", **change})
    assert main(["--jobs", str(file), "--device", "cpu", "--disable_gemini_prompt"]) == REFUSED
    assert capsys.readouterr().err.strip().startswith("error: ")


def test_names_of_a_table_send_no_orders_to_the_terminal(
    image: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    row = {"image_path": image.name, "text": f"{SCRIPT}{ORDERS}", "output_path": f"{ORDERS[:-1]}.png"}
    assert main(["--jobs", str(table(tmp_path, row)), *QUICK, "--disable_gemini_prompt"]) == 0
    file = table(tmp_path, row, {**row, "image_path": f"{ORDERS}.png", "output_path": "o.png"})
    assert main(["--jobs", str(file), *QUICK]) == REFUSED
    assert not set("".join(capfd.readouterr())) & {"\x1b", "\x07", "\x9b"}


def test_a_broken_parquet_is_refused(tmp_path: Path) -> None:
    (tmp_path / "jobs.parquet").write_bytes(b"PAR1" + b"\xff" * 64 + b"PAR1")
    with pytest.raises(TableError):
        read_jobs(tmp_path / "jobs.parquet", {})
