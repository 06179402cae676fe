"""The offline judge separates good, copied and bad images by pixels and text alone, and the whole command runs."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image
from support.commands import compose_train

from dsd_lightning.evaluation.errors import EvaluationError
from dsd_lightning.evaluation.judging.rubrics import Rubrics
from dsd_lightning.evaluation.samples.benchmark import Case, Prompt, Subject
from dsd_lightning.evaluation.samples.generate import Part, make
from dsd_lightning.evaluation.samples.result_folder import Samples
from dsd_lightning.evaluation.scores.aggregate import SUBJECTS_OF
from dsd_lightning.evaluation.subcommand_table import pop_subcommand
from dsd_lightning.miniature.captions import target_caption
from dsd_lightning.miniature.renderer import render
from dsd_lightning.miniature.world import Context, Identity, Scene, draw_context, draw_identity
from dsd_lightning.offline import benchmark as miniature_benchmark
from dsd_lightning.offline.copy_paste import CopyPaste
from dsd_lightning.offline.score_judge.judge import reply, requested
from dsd_lightning.offline.score_judge.scene import as_pixels, infer_scene
from dsd_lightning.randomness import numpy_generator


def jpeg(scene: Scene, side: int = 512) -> bytes:
    """Return a scene's image as a judge gets it."""
    values: NDArray[np.uint8] = np.round(render(scene).image * 255).astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(values).resize((side, side), Image.Resampling.BICUBIC).save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


def test_scenes_are_read_from_images_as_a_judge_gets_them() -> None:
    rng = numpy_generator("test", "scenes")
    wrong = 0
    for _ in range(12):
        scene = Scene(draw_identity(rng, held_out=None), draw_context(rng))
        wrong += infer_scene(as_pixels(Image.open(io.BytesIO(jpeg(scene))))) != scene
    assert wrong <= 1


def test_an_empty_image_shows_no_character() -> None:
    assert infer_scene(np.full((3, 64, 64), 0.3, dtype=np.float32)) is None


@given(st.integers(0, 10_000))
def test_what_a_caption_says_is_what_is_requested(seed: int) -> None:
    rng = numpy_generator("test", "captions", seed)
    context = draw_context(rng)
    values = requested(target_caption(context, rng))
    said = {name: getattr(context, name) for name in values}
    assert values == said
    unsaid = set(Context.vocabulary) - set(values)
    assert unsaid <= {"rotation", "light_direction", "light_color", "style"}
    assert all(getattr(context, name) == 0 for name in unsaid)


REFERENCE = Scene(Identity(3, 0, 4, 1, 0, 0), Context(0, 0, 0, 0, 0, 0, 0, 0))
ASKED = replace(REFERENCE.context, place=1, rotation=2, background_kind=1, background_color=3)
TEXT = "Text prompt: this character, large, on the left, tilted right, on a striped pink background"
RUBRICS = Rubrics()


def scores(generated: bytes) -> dict[str, int]:
    """Return the offline judge's scores of an image for ASKED, of the subject of REFERENCE."""
    reference = jpeg(REFERENCE)
    case = Case(Subject("a", "animal", Path("a.jpg"), ()), Prompt(0, TEXT, "prompt"))
    shown = {
        "cp": ("", [reference, generated]),
        "pf": (TEXT, [generated]),
        "debiased_cp": ("", [reference, generated]),
        "debiased_pf": (TEXT, [generated, reference]),
    }
    return {
        measure: int(reply(RUBRICS.of(measure, case).text, text, images)[-1])
        for measure, (text, images) in shown.items()
    }


def test_the_truth_scores_full_and_a_copy_only_where_copying_is_not_looked_at() -> None:
    assert set(scores(jpeg(Scene(REFERENCE.identity, ASKED))).values()) == {4}
    copied = scores(jpeg(REFERENCE))
    assert (copied["cp"], copied["debiased_cp"]) == (4, 0)
    assert copied["debiased_pf"] < 4 > copied["pf"]


def test_a_pasted_character_is_seen_as_a_copy() -> None:
    on_another_ground = replace(REFERENCE.context, background_color=3)
    pasted = scores(jpeg(Scene(REFERENCE.identity, on_another_ground)))
    assert pasted["cp"] == 4
    assert pasted["debiased_cp"] == 1
    assert pasted["debiased_pf"] == max(0, pasted["pf"] - 1)


def test_wrong_attributes_cost_points_of_the_measure_that_they_belong_to() -> None:
    other = replace(REFERENCE.identity, color=2, pattern=2)
    stranger = scores(jpeg(Scene(other, ASKED)))
    assert (stranger["cp"], stranger["pf"]) == (2, 4)
    elsewhere = scores(jpeg(Scene(REFERENCE.identity, replace(ASKED, place=2, background_color=1))))
    assert elsewhere["cp"] == 4
    assert elsewhere["pf"] == 2


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of the benchmark of miniature characters."""
    return miniature_benchmark.write(tmp_path_factory.mktemp("benchmark"))


def test_the_benchmark_has_dreambenchpps_shape_and_no_prompt_repeats_the_references_pose(
    folder: Path, tmp_path: Path
) -> None:
    benchmark = miniature_benchmark.miniature(folder)
    assert len(benchmark.subjects) == 150
    assert len(benchmark.cases()) == 1350
    sizes = {name: sum(each.category == name for each in benchmark.subjects) for name in SUBJECTS_OF}
    assert sizes == SUBJECTS_OF
    assert {each.category for each in benchmark.limited(12).subjects} == set(SUBJECTS_OF)
    again = miniature_benchmark.write(tmp_path / "again")
    one, other = (sorted((root / "captions").rglob("*.txt")) for root in (folder, again))
    assert [file.read_text() for file in one] == [file.read_text() for file in other]
    with pytest.raises(EvaluationError, match="other settings"):
        miniature_benchmark.write(folder, seed=1)


class Counting(CopyPaste):
    """Counts what is generated, and can stop."""

    def __init__(self, last: int = 1000) -> None:
        self.batches: list[list[str]] = []
        self.last = last

    def generate(self, cases, references, seed):  # type: ignore[no-untyped-def]
        if len(self.batches) == self.last:
            raise KeyboardInterrupt
        self.batches.append([case.name for case in cases])
        return super().generate(cases, references, seed)


def test_images_are_generated_once_and_shared_among_processes(folder: Path, tmp_path: Path) -> None:
    cases = miniature_benchmark.miniature(folder, subjects=2).cases()
    whole = Counting()
    make(whole, Samples(tmp_path / "whole"), cases, 0, 5)
    assert [len(batch) for batch in whole.batches] == [5, 5, 5, 3]
    broken = Counting(last=2)
    with pytest.raises(KeyboardInterrupt):
        make(broken, Samples(tmp_path / "broken"), cases, 0, 5)
    (tmp_path / "broken" / "tgt_image" / cases[6].subject.name / "6_0.jpg").unlink()
    resumed = Counting()
    make(resumed, Samples(tmp_path / "broken"), cases, 0, 5)
    assert resumed.batches == whole.batches[1:]
    parts = [Counting(), Counting()]
    for index, part in enumerate(parts):
        make(part, Samples(tmp_path / "parts"), cases, 0, 5, Part(index, 2))
    assert [parts[0].batches[0], parts[1].batches[0]] == whole.batches[:2]
    for name in ("broken", "parts"):
        for case in cases:
            one, other = (Samples(tmp_path / each).image(case) for each in ("whole", name))
            assert one is not None
            assert other is not None
            assert one.read_bytes() == other.read_bytes()
    with pytest.raises(EvaluationError, match="another seed"):
        make(Counting(), Samples(tmp_path / "whole"), cases, 1, 5)


def evaluate(*arguments: str) -> str:
    """Run a command in this process and return what it tells the user."""
    line = ["evaluate.py", *arguments]
    command = pop_subcommand(line)
    return command.run(compose_train(Path("run"), *line[1:], name=command.config))


@pytest.mark.slow
def test_the_command_scores_the_shipped_model_and_tables_compare_methods(
    folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    common = (
        "benchmark.subjects=1",
        f"benchmark.folder={folder}",
        f"out={tmp_path}/out",
        f"agents.folder={tmp_path}/agents",
    )
    assert "Judge: miniature-judge-1. Rule: sample." in evaluate(*common, "method.maker.sampling.steps=2")
    assert (tmp_path / "out" / "tables" / "ours.tex").is_file()
    first = (tmp_path / "out" / "tables" / "ours.csv").read_text()
    caplog.set_level("INFO")
    evaluate(*common, "method.maker.sampling.steps=2")
    assert "0 to make" in caplog.text
    assert (tmp_path / "out" / "tables" / "ours.csv").read_text() == first
    evaluate(*common, "method=copy_paste")
    records = tmp_path / "out" / "judgements"
    both = evaluate(
        "table",
        f"rows=[{records}/copy_paste.jsonl,{records}/ours.jsonl]",
        f"out={tmp_path}/tables",
        "rule=as-published",
    )
    assert "copy_paste - ours" in both
    assert "Ours" in both
    lines = [json.loads(line) for line in (records / "ours.jsonl").read_text().splitlines()]
    assert len(lines) == 36
