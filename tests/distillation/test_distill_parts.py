"""The parts of a run keep their contracts: rules, panels, captions, records on disk, the offline writer and judge."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from dsd_lightning.distillation import panels
from dsd_lightning.distillation.judge_quality import read_labels, scores, write_labels
from dsd_lightning.distillation.prompts import SHIPPED, Prompts
from dsd_lightning.distillation.records import DistillationError, Outcome, Record, Rejection, Usage, png
from dsd_lightning.distillation.rules import Words, read_subject, read_verdict
from dsd_lightning.distillation.stages.captions import CaptionFiles, sample
from dsd_lightning.distillation.stages.split import Split
from dsd_lightning.distillation.store import Store
from dsd_lightning.miniature.renderer import render
from dsd_lightning.miniature.world import Identity, Scene, change_identity, draw_context, draw_identity
from dsd_lightning.offline.captions import MiniatureCaptions
from dsd_lightning.offline.pixel_judge import same_character as eyes
from dsd_lightning.randomness import numpy_generator

TINY = Path(__file__).parents[2] / "assets" / "tiny-flux"
QUADRANTS = "top-left a, top-right b, bottom-left c, bottom-right d"


@pytest.mark.parametrize(
    ("text", "same", "confidence"),
    [
        ("I see no difference.\nconfidence: 90\nyes", True, 0.9),
        ("They differ in colour. no", False, None),
        ("**Yes.**", True, None),
        ("confidence: 250\n\nNo", False, None),
        ("Confidence: 0.95\nYes", True, 0.95),
        ("confidence: 95%\nyes", True, 0.95),
        ("Confidence: 9/10\nyes", True, 0.9),
        ("**Confidence:** 80 out of 100\n**Yes**", True, 0.8),
        ("confidence (0-100): 85\nyes", True, 0.85),
        ("confidence: 1\nyes", True, None),
        ("confidence: 1.0\nyes", True, 1.0),
        ("confidence: 0\nno", False, 0.0),
        ("confidence: 80-90\nyes", True, None),
        ("confidence: -5\nno", False, None),
        ("yes\nConfidence: 90", True, 0.9),
        ("Yes, they are the same.", True, None),
        ("No, they are different characters.", False, None),
        ("Is it the same (yes/no): no", False, None),
        ("<think>confidence: 10\nno</think>\nconfidence: 90\nyes", True, 0.9),
        ('```json\n{"confidence": 0.9, "answer": "yes"}\n```', True, 0.9),
        ('{"same": false, "confidence": 20}', False, 0.2),
        ("\uff23onfidence\uff1a\uff19\uff10\n\uff39es\u3002", True, 0.9),
        ("置信度\uff1a90\n答案\uff1a是", True, 0.9),
        ("不是\u3002", False, None),
        ("Final answer: yes", True, None),
    ],
)
def test_a_verdict_is_the_last_word(text: str, same: bool, confidence: float | None) -> None:
    verdict = read_verdict(text)
    assert verdict is not None
    assert (verdict.same, verdict.confidence) == (same, confidence)


CONTRADICTIONS = (
    "",
    "yes and no",
    "yes\nor maybe not",
    "no, I mean yes",
    "identical",
    "yes?no",
    "Yes, they are not the same.",
    "Yes, but the hat differs.",
    "No, wait, they are identical.",
    "No doubt they are the same.",
    "<think>yes",
    '{"same": true, "answer": "no"}',
)


@pytest.mark.parametrize(
    "text", ["", "yes and no", "yes\nor maybe not", "no, I mean yes", "identical", "yes?no", *CONTRADICTIONS]
)
def test_anything_else_is_no_verdict(text: str) -> None:
    assert read_verdict(text) is None


@given(st.text(max_size=40))
def test_reading_never_fails(text: str) -> None:
    read_verdict(text)
    read_subject(text)


def test_a_subject_needs_a_name() -> None:
    assert read_subject("Yes: a red fox.") == (True, "a red fox")
    assert read_subject("no") == (False, "")
    assert read_subject("yes") is None
    assert read_subject("It depends.") is None


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        (f"a grid of cats: {QUADRANTS}", None),
        (f"four cats: {QUADRANTS}", "begin with"),
        (f"a grid of cats:\n{QUADRANTS}", "more than one line"),
        ("a grid of cats: top-left a, top-right b, bottom-left c", "bottom-right"),
        (f"a grid of cats: {QUADRANTS}" + " large" * 90, "tokens"),
        ("", "empty"),
    ],
)
def test_rules_of_named_grid_prompts(text: str, rule: str | None) -> None:
    broken = Words(str(TINY), 77, "named").broken_by_grid(text)
    assert broken is None if rule is None else rule in (broken or "")


def test_listed_grid_prompts_have_four_parts() -> None:
    words = Words(str(TINY), 77, "listed")
    assert words.broken_by_grid("a grid of a cat; large; small; left; right") is None
    assert "3 quadrants" in (words.broken_by_grid("a grid of a cat; large; small; left") or "")


def grid(
    colors: np.ndarray,
    height: int = 96,
    width: int = 96,
    at: tuple[float, float] = (0.5, 0.5),
    line: int = 0,
    rim: int = 0,
) -> np.ndarray:
    """Return an image of speckled panels [rows, columns, 3], divided at shares of the side, with separators and a rim."""
    rows, columns = colors.shape[:2]
    down = [0, round(at[0] * height), height] if rows == 2 else np.linspace(0, height, rows + 1).round().astype(int)
    across = (
        [0, round(at[1] * width), width] if columns == 2 else np.linspace(0, width, columns + 1).round().astype(int)
    )
    values = np.zeros((height, width, 3))
    for row in range(rows):
        for column in range(columns):
            values[down[row] : down[row + 1], across[column] : across[column + 1]] = colors[row, column]
    values += np.random.default_rng(0).normal(0, 8, values.shape)
    if line:
        for row in down[1:-1]:
            values[row - line // 2 : row - line // 2 + line] = 255
        for column in across[1:-1]:
            values[:, column - line // 2 : column - line // 2 + line] = 255
    values = np.pad(values, ((rim, rim), (rim, rim), (0, 0)), constant_values=255) if rim else values
    return values.clip(0, 255).astype(np.uint8)


def colors(rows: int, columns: int, seed: int = 1) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return rng.permutation(np.linspace(20, 200, rows * columns)).reshape(rows, columns, 1).repeat(3, axis=-1)


@pytest.mark.parametrize("rim", [0, 4])
@pytest.mark.parametrize("line", [0, 3])
@pytest.mark.parametrize("at", [(0.5, 0.5), (0.5, 0.49), (0.49, 0.5)])
def test_panels_are_found_where_they_are(at: tuple[float, float], line: int, rim: int) -> None:
    image = grid(colors(2, 2), at=at, line=line, rim=rim)
    boxes = panels.find_panels(image)
    assert len(boxes) == 4
    for box, color in zip(boxes, colors(2, 2).reshape(4, 3), strict=True):
        inside = image[box.top : box.bottom, box.left : box.right]
        assert abs(inside.mean() - color.mean()) < 2
        assert inside.shape[0] > 0.35 * 96
        assert inside.shape[1] > 0.35 * 96


@pytest.mark.parametrize("line", [0, 3])
@pytest.mark.parametrize("at", [(0.5, 0.58), (0.42, 0.5)])
def test_panels_of_unequal_sizes_are_refused(at: tuple[float, float], line: int) -> None:
    with pytest.raises(panels.NotTwoByTwo):
        panels.find_panels(grid(colors(2, 2), at=at, line=line))


@pytest.mark.parametrize("line", [0, 3])
@pytest.mark.parametrize(("rows", "columns"), [(1, 1), (1, 2), (2, 1), (2, 3), (2, 4), (3, 3), (4, 4), (1, 3)])
def test_other_divisions_are_refused(rows: int, columns: int, line: int) -> None:
    with pytest.raises(panels.NotTwoByTwo):
        panels.find_panels(grid(colors(rows, columns), line=line))


def test_a_wide_panel_over_two_small_ones_is_refused() -> None:
    for merged in (np.s_[0, 1], np.s_[1, 1]):
        shown = colors(2, 2)
        shown[merged] = shown[merged[0], 0]
        with pytest.raises(panels.NotTwoByTwo, match="a half without division"):
            panels.find_panels(grid(shown))


def test_captions_of_all_kinds_of_files_are_sampled_alike(tmp_path: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    import pyarrow

    texts = [f"caption number {number}" for number in range(50)] + ["  Caption  number 3 ", ""]
    (tmp_path / "a.txt").write_text("\n".join(texts))
    (tmp_path / "a.csv").write_text("id,TEXT\n" + "\n".join(f'{i},"{text}"' for i, text in enumerate(texts)))
    (tmp_path / "a.jsonl").write_text("\n".join(json.dumps({"caption": text}) for text in texts))
    parquet.write_table(pyarrow.table({"TEXT": texts, "url": texts}), tmp_path / "a.parquet")
    sampled = [
        [record.values["caption"] for record in sample(CaptionFiles(str(tmp_path / f"a.{kind}")), 10, seed=1)]
        for kind in ("txt", "csv", "jsonl", "parquet")
    ]
    assert sampled[0] == sampled[1] == sampled[2] == sampled[3]
    assert len(set(sampled[0])) == 10
    everything = sample(CaptionFiles(str(tmp_path / "a.txt")), 1000, seed=1)
    assert len(everything) == 50
    assert [record.values["caption"] for record in everything[:10]] == sampled[0]
    assert sample(CaptionFiles(str(tmp_path / "a.txt")), 10, seed=2) != everything[:10]


def test_wrong_caption_files_are_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("id,words\n1,hello\n")
    with pytest.raises(DistillationError, match=r"captions\.column=NAME"):
        sample(CaptionFiles(str(tmp_path / "a.csv")), 1, seed=0)
    with pytest.raises(DistillationError, match="no such file"):
        CaptionFiles(str(tmp_path / "b.csv"))


def image(value: int) -> bytes:
    return png(Image.new("RGB", (4, 4), (value, 0, 0)))


def test_records_and_images_come_back_as_they_were(tmp_path: Path) -> None:
    store = Store(tmp_path)
    first = [Record(f"r{i}", {"n": i, "text": "\N{SNOWMAN}"}, {}, {"grid": image(i)}) for i in range(3)]
    outcome = Outcome(first[:2], [Rejection(first[2], "odd", "it is")], Usage(calls=2))
    written = store.write("grids", 0, "key", 3, outcome, 0.5)
    assert store.manifest("grids", 0) == written
    assert store.manifests("grids") == [written]
    back = store.read("grids", 0, ["grid"])
    assert [(each.id, each.values, each.images) for each in back] == [
        (each.id, each.values, each.images) for each in first[:2]
    ]
    child = Record("r0-01", {}, {"one": back[0].stored["grid"]})
    store.write("verify", 0, "key", 1, Outcome([child]), 0.0)
    assert store.read("verify", 0, ["one"])[0].images == {"one": image(0)}
    assert [(each.record.id, each.reason) for each in store.read_rejected("grids", 0)] == [("r2", "odd")]


def test_equal_records_have_equal_digests_in_any_order(tmp_path: Path) -> None:
    records = [Record(f"r{i}", {"n": i}, {}, {"grid": image(i)}) for i in range(3)]
    one = Store(tmp_path / "a").write("grids", 0, "k", 3, Outcome(records), 1.0)
    other = Store(tmp_path / "b").write("grids", 0, "k", 3, Outcome(records[::-1]), 2.0)
    changed = Store(tmp_path / "c").write("grids", 0, "k", 3, Outcome(records[:2]), 2.0)
    assert one.digest == other.digest != changed.digest


def test_partitions_are_found_in_order_however_many_there_are(tmp_path: Path) -> None:
    store = Store(tmp_path)
    numbers = [100_001, 7, 99_999]
    for number in numbers:
        store.write("split", number, "k", 0, Outcome([]), 0.0)
    assert [manifest.partition for manifest in store.manifests("split")] == sorted(numbers)


def test_one_id_twice_is_refused_and_leaves_nothing(tmp_path: Path) -> None:
    store = Store(tmp_path)
    with pytest.raises(DistillationError, match="two records 'a'"):
        store.write("split", 0, "k", 2, Outcome([Record("a", {}), Record("a", {})]), 0.0)
    assert list((tmp_path / "split").iterdir()) == []


def test_own_prompts_replace_shipped_ones_and_add_families(tmp_path: Path) -> None:
    (tmp_path / "filter.txt").write_text("Is it good? `$caption`")
    (tmp_path / "grid_vehicle.txt").write_text("Vehicles! `$caption` $quadrants")
    own = Prompts(str(tmp_path))
    assert own.fill("filter", caption="x") == "Is it good? `x`"
    assert "Vehicles" in own.text("grid_vehicle")
    assert own.text("verify_common") == (SHIPPED / "verify_common.txt").read_text().strip()
    (tmp_path / "filter.txt").write_text("$nonsense")
    with pytest.raises(DistillationError, match=r"filter\.txt.*\$caption"):
        own.fill("filter", caption="x")


def test_labels_and_scores(tmp_path: Path) -> None:
    said = {"a": (True, 0.9, "yes"), "b": (True, 0.6, "no"), "c": (False, 0.3, "yes"), "d": (True, 0.8, "ambiguous")}
    pairs = [Record(name, {"same": same, "confidence": sure}) for name, (same, sure, _) in said.items()]
    write_labels(tmp_path / "labels.csv", {name: label for name, (*_, label) in said.items()} | {"later": ""})
    labels = read_labels(tmp_path / "labels.csv")
    assert labels == {name: label for name, (*_, label) in said.items()}
    by_word, *others = scores(pairs, labels)
    assert (by_word.before, by_word.precision, by_word.recall) == (pytest.approx(2 / 3), 0.5, 0.5)
    assert (by_word.ambiguous, by_word.kept_ambiguous) == (1, 1)
    loose, strict = others[0], others[-2]
    assert (loose.kept, loose.recall) == (3, 1.0)
    assert (strict.threshold, strict.kept, strict.precision) == (0.9, 1, 1.0)
    (tmp_path / "labels.csv").write_text("pair,same\na,perhaps\n")
    with pytest.raises(DistillationError, match="'perhaps'"):
        read_labels(tmp_path / "labels.csv")


def test_miniature_captions_never_describe_held_out_characters() -> None:
    from dsd_lightning.offline.writer import RuleWriter

    writer = RuleWriter(seed=0, name_subject=1.0)
    subjects = [writer._subject(text) for text in MiniatureCaptions(200, 0.2, seed=0).texts()]
    characters = [subject for subject in subjects if subject is not None]
    assert 20 < len(subjects) - len(characters) < 60
    assert not any(subject.held_out for subject in characters)


def test_the_writer_names_the_subject_in_the_configured_share_of_prompts() -> None:
    from dsd_lightning.offline.writer import RuleWriter

    who = draw_identity(numpy_generator("told"))
    for share, least, most in ((0.0, 0, 0), (0.5, 80, 120), (1.0, 200, 200)):
        writer = RuleWriter(seed=0, name_subject=share)
        prompts = [writer._grid(who, f"caption {number}", 0) for number in range(200)]
        assert least <= sum("one character" not in prompt for prompt in prompts) <= most
    with pytest.raises(DistillationError, match=r"name_subject=1\.5: must be in"):
        RuleWriter(seed=0, name_subject=1.5)


def rendered(identity: Identity, index: int) -> Image.Image:
    rng = numpy_generator("eyes", index)
    shown = Scene(identity, draw_context(rng))
    # one light and style in all images, as within a grid
    context = type(shown.context)(**{**vars(shown.context), "light_direction": 0, "light_color": 0, "style": 0})
    return Image.fromarray((render(Scene(identity, context)).image * 255).round().astype(np.uint8))


def test_the_pixel_judge_separates_one_character_from_another() -> None:
    same, other = [], []
    for index in range(8):
        rng = numpy_generator("who", index)
        who = draw_identity(rng)
        shape = change_identity(who, "color", rng)
        cut = [eyes.cut_out(rendered(each, 2 * index + n)) for n, each in enumerate((who, who, shape))]
        assert None not in cut
        one, again, different = cut
        assert one is not None
        assert again is not None
        assert different is not None
        same.append(eyes.compare(one, again).worst)
        other.append(eyes.compare(one, different).worst)
    assert np.median(same) < 0.5 * np.median(other)
    assert sum(a < b for a, b in zip(same, other, strict=True)) >= 7


def test_no_character_is_cut_out_of_an_empty_background() -> None:
    assert eyes.cut_out(Image.new("RGB", (64, 64), (140, 180, 220))) is None
    assert eyes.cut_out(Image.open(io.BytesIO(image(9))).resize((64, 64))) is None


@given(st.integers(1, 31), st.integers(1, 64), st.integers(0, 255))
def test_images_of_a_few_pixels_are_no_grids(height: int, width: int, level: int) -> None:
    for shape in ((height, width, 3), (width, height, 3)):
        with pytest.raises(panels.NotTwoByTwo, match="pixels"):
            panels.find_panels(np.full(shape, level, dtype=np.uint8))


def test_a_grid_that_cannot_be_decoded_is_rejected_by_name() -> None:
    outcome = Split(32, 32, least=0.5, trim=0).run([Record("a", {}, {}, {"grid": b"no image"})])
    assert [each.reason for each in outcome.rejected] == ["unreadable_image"]
