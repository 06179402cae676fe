"""Shows that benchmarks are read from folders and tables as people have them, and that their mistakes are named."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from dsd_lightning.evaluation.errors import EvaluationError
from dsd_lightning.evaluation.samples.benchmark import dreambench, dreambenchpp, folder, table
from dsd_lightning.evaluation.samples.result_folder import Samples
from dsd_lightning.evaluation.subcommand_table import SUBCOMMANDS
from dsd_lightning.files.rows import TableError
from dsd_lightning.files.text import TextError


def save(file: Path) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (16, 16), (200, 100, 50)).save(file, "PNG" if file.suffix.lower() == ".png" else "JPEG")


def checkout(root: Path, lines: bytes, ending: str = ".jpg") -> Path:
    """Write DreamBench++'s layout, with two subjects and with files that systems leave behind."""
    for place in ("live_subject/animal/00", "style/19"):
        captions = root / "data" / "captions" / f"{place}.txt"
        captions.parent.mkdir(parents=True, exist_ok=True)
        captions.write_bytes(lines)
        captions.with_name(f"._{captions.name}").write_bytes(b"\xff\x00")
        save(root / "data" / "images" / f"{place}{ending}")
    (root / "data" / "captions" / ".DS_Store").write_bytes(b"\xff")
    (root / "data" / "images" / "style" / "Thumbs.db").write_bytes(b"\xff")
    return root


LINES = "\r\n".join(["Polar Bear", *(f"prompt {number}" for number in range(9))])


@pytest.mark.parametrize(("encoding", "ending"), [("utf-8", ".jpg"), ("utf-8-sig", ".JPG")])
def test_a_dreambenchpp_checkout_is_read_with_its_collection_ids(tmp_path: Path, encoding: str, ending: str) -> None:
    bear, style = dreambenchpp(checkout(tmp_path, LINES.encode(encoding), ending)).subjects
    assert (bear.name, bear.category) == ("live_subject_animal_00_polar_bear", "animal")
    assert (style.name, style.category) == ("style_19_polar_bear", "style")
    assert [prompt.kind for prompt in bear.prompts] == ["photorealistic"] * 4 + ["style"] * 3 + ["imaginative"] * 2
    assert [prompt.text for prompt in bear.prompts] == [f"prompt {number}" for number in range(9)]
    assert bear.reference.suffix == ending
    style.reference.unlink()
    with pytest.raises(EvaluationError, match=r"19\.jpg is missing"):
        dreambenchpp(tmp_path)


def test_captions_that_are_not_utf8_are_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(TextError, match=r"00\.txt is not UTF-8.*iconv -f WINDOWS-1252"):
        dreambenchpp(checkout(tmp_path, "Café\na bear".encode("cp1252")))


def test_a_dreambench_checkout_is_read(tmp_path: Path) -> None:
    save(tmp_path / "dataset" / "cat2" / "10.JPG")
    save(tmp_path / "dataset" / "cat2" / "2.jpg")
    save(tmp_path / "dataset" / "vase" / "00.jpg")
    lists = "".join(f"prompt_list = [\n'a {{0}} {{1}} {place}'\n]\n" for place in ("in snow", "in a hat"))
    (tmp_path / "dataset" / "prompts_and_classes.txt").write_text(f"subject_name,class\ncat2,cat\nvase,vase\n\n{lists}")
    cat, vase = dreambench(tmp_path).subjects
    assert (cat.reference.name, cat.prompts[0].text, cat.category) == ("2.jpg", "a cat in a hat", "live subject")
    assert (vase.prompts[0].text, vase.category) == ("a vase in snow", "object")


def test_a_folder_is_read_in_natural_order_without_hidden_files(tmp_path: Path) -> None:
    for name in ("animals/10.png", "animals/2.PNG"):
        save(tmp_path / name)
        (tmp_path / name).with_suffix(".txt").write_text("\ufeffon the moon\r\n\r\nin a hat", encoding="utf-8")
    (tmp_path / "animals" / "._2.png").write_bytes(b"not an image")
    subjects = folder(tmp_path).subjects
    assert [subject.name for subject in subjects] == ["animals_2", "animals_10"]
    assert all([prompt.text for prompt in subject.prompts] == ["on the moon", "in a hat"] for subject in subjects)
    save(tmp_path / "dog.png")
    with pytest.raises(EvaluationError, match=r"dog\.png: its prompts are missing"):
        folder(tmp_path)


def test_a_table_is_read_and_its_mistakes_are_named(tmp_path: Path) -> None:
    save(tmp_path / "cat.png")
    file = tmp_path / "cases.csv"
    file.write_text("reference,prompt,category\ncat.png,on the moon,animal\ncat.png,in a hat,animal\n")
    (cat,) = table(file).subjects
    assert (cat.name, cat.category) == ("cat", "animal")
    assert [prompt.text for prompt in cat.prompts] == ["on the moon", "in a hat"]
    for line, error, message in (
        ("dog.png,on the moon", EvaluationError, r"row 1: there is no image .*dog\.png"),
        ("cat.png,", TableError, "row 1: column 'prompt' is empty"),
        ("cat.png,this character, large", TableError, "row 1 has 3 cells"),
    ):
        file.write_text(f"reference,prompt\n{line}\n")
        with pytest.raises(error, match=message):
            table(file)


def test_images_of_other_methods_are_read_whatever_the_case_of_their_ending(tmp_path: Path) -> None:
    save(tmp_path / "b" / "cat.png")
    (tmp_path / "b" / "cat.txt").write_text("in a hat\non the moon")
    first, second = folder(tmp_path / "b").cases()
    save(tmp_path / "m" / "tgt_image" / "cat" / "0_0.JPG")
    image = Samples(tmp_path / "m").image(first)
    assert image is not None
    assert image.name == "0_0.JPG"
    assert Samples(tmp_path / "m").image(second) is None


def test_every_subcommand_has_a_function() -> None:
    assert all(callable(subcommand.resolve()) for subcommand in SUBCOMMANDS.values())
