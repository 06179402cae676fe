"""Images are generated from a user's own references and prompts, and sheets are laid out as documented."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from support.sample_runs import Miniature, run, small_module

from callbacks.isolated_sampling import EveryNSteps
from callbacks.probes import MiniatureProbe
from callbacks.samples import PromptsFileError, Request, SampleSheets, read_requests
from dsd_lightning.files.rows import TableError
from dsd_lightning.images.pixels import to_image
from dsd_lightning.images.sheet import CAPTION_SIZE, GAP, LINE, MARGIN, Row, _lines, draw_sheet, magnified, save_whole


def write_requests(folder: Path, *lines: Any) -> Path:
    path = folder / "prompts.jsonl"
    path.write_text("\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines) + "\n\n")
    return path


def test_a_users_requests_are_rows_without_truth(tmp_path: Path) -> None:
    Image.new("RGB", (200, 90), (200, 60, 30)).save(tmp_path / "mine.png")
    line = {"image": "mine.png", "prompt": "this character, small, on the left"}
    path = write_requests(tmp_path, line, line, line)
    sheets = SampleSheets(count=2, at_start=False, prompts_file=str(path), folder=str(tmp_path / "here"))
    module, data = small_module(), Miniature()
    run(tmp_path, module, data, [sheets], steps=1)
    assert (tmp_path / "here" / "step_00000001.png").is_file()
    assert [tuple(reference.shape) for reference in sheets.references] == [(3, 64, 64)] * 3
    rows = sheets._request_rows(module)
    assert [set(row.images) for row in rows] == [{"reference", "reconstructed reference", "generated"}] * 3
    assert rows[0].caption == line["prompt"]
    assert rows[0].images["generated"] != rows[1].images["generated"]  # the same request, other noise


def test_missing_images_are_all_named(tmp_path: Path) -> None:
    Image.new("RGB", (80, 80)).save(tmp_path / "there.png")
    path = write_requests(tmp_path, *({"image": name, "prompt": "p"} for name in ("a.png", "there.png", "b.png")))
    with pytest.raises(PromptsFileError, match=r"2 images that do not exist: .*a\.png, .*b\.png"):
        SampleSheets(prompts_file=str(path))


@pytest.mark.parametrize("line", ["{broken", '["a", "b"]', '{"image": "a.png"}', '{"image": "a.png", "prompt": 3}'])
def test_a_bad_line_is_named(tmp_path: Path, line: str) -> None:
    Image.new("RGB", (80, 80)).save(tmp_path / "a.png")
    path = write_requests(tmp_path, {"image": "a.png", "prompt": "fine"}, line)
    with pytest.raises(TableError, match="row 2"):
        read_requests(path)


def test_paths_are_relative_to_the_file(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    Image.new("RGB", (80, 80)).save(tmp_path / "images" / "a.png")
    path = write_requests(tmp_path, {"image": "images/a.png", "prompt": "p"})
    assert read_requests(path) == [Request(tmp_path / "images" / "a.png", "p")]
    with pytest.raises(PromptsFileError, match="no such file"):
        read_requests(tmp_path / "none.jsonl")


@pytest.mark.parametrize(("content", "reason"), [((40, 80), "without being enlarged"), (b"no image", "cannot decode")])
def test_an_image_that_cannot_be_a_reference_is_refused_before_training(
    tmp_path: Path, content: Any, reason: str
) -> None:
    if isinstance(content, bytes):
        (tmp_path / "bad.png").write_bytes(content)
    else:
        Image.new("RGB", content).save(tmp_path / "bad.png")
    path = write_requests(tmp_path, {"image": "bad.png", "prompt": "p"})
    data = Miniature()
    with pytest.raises(PromptsFileError, match=rf"bad\.png: .*{reason}"):
        run(tmp_path, small_module(), data, [SampleSheets(prompts_file=str(path))])
    assert data.served == 0


def test_a_sheet_shows_every_pixel_in_its_place() -> None:
    left, right = Image.new("RGB", (64, 64), (255, 0, 0)), Image.new("RGB", (64, 64), (0, 0, 255))
    left.putpixel((63, 0), (0, 255, 0))
    sheet = draw_sheet(["one", "two"], [Row({"one": left, "two": right}, "a"), Row({"two": left}, "b")])
    top = MARGIN + 14 + GAP
    assert sheet.crop((MARGIN, top, MARGIN + 128, top + 128)).tobytes() == magnified(left).tobytes()
    assert sheet.crop((MARGIN + 128 + GAP, top, MARGIN + 256 + GAP, top + 128)).tobytes() == magnified(right).tobytes()
    second = top + 128 + GAP // 2 + LINE + GAP
    assert sheet.getpixel((MARGIN + 5, second + 5)) == (255, 255, 255)
    assert sheet.getpixel((MARGIN + 128 + GAP + 127, second + 1)) == (0, 255, 0)


@pytest.mark.parametrize(("size", "shown"), [((64, 64), (128, 128)), ((50, 100), (150, 300)), ((512, 300), (512, 300))])
def test_images_are_magnified_by_whole_numbers(size: tuple[int, int], shown: tuple[int, int]) -> None:
    assert magnified(Image.new("RGB", size)).size == shown


def test_long_captions_are_broken_and_then_cut() -> None:
    from PIL import ImageFont

    font = ImageFont.load_default(CAPTION_SIZE)
    assert _lines("short", font, 300) == ["short"]
    assert _lines("", font, 300) == []
    lines = _lines("this character, small, on the left, " * 10, font, 300)
    assert len(lines) == 2
    assert lines[-1].endswith(" ...")
    assert all(font.getlength(line) <= 300 for line in (*lines, *_lines("x" * 400, font, 300)))


def test_a_sheet_without_images_is_refused() -> None:
    with pytest.raises(ValueError, match="no image"):
        draw_sheet(["one"], [Row({}, "caption")])


def test_an_image_is_written_whole_and_leaves_nothing_beside_it(tmp_path: Path) -> None:
    image = to_image(torch.rand(3, 16, 16) * 2 - 1)
    for _ in range(2):
        save_whole(image, tmp_path / "new" / "sheet.png")
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["sheet.png"]
    with Image.open(tmp_path / "new" / "sheet.png") as read:
        assert read.tobytes() == image.tobytes()


def test_intervals_and_counts_below_one_are_refused() -> None:
    with pytest.raises(ValueError, match="every_n_steps=0"):
        EveryNSteps(0, "every_n_steps")
    with pytest.raises(ValueError, match="count=0"):
        SampleSheets(count=0)
    with pytest.raises(ValueError, match="samples=0"):
        MiniatureProbe({}, samples=0)
