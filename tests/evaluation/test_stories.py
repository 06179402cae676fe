"""Shows that stories are read, scored and laid out as ViStoryBench does, with the values of its code, stated here again.

Its code: `dataset_load.py`, `read_outputs.py`, `csd_evaluator.py`, `cids_evaluator.py` and `prompt_align_evaluator.py` of
https://github.com/ViStoryBench/vistorybench. Where ours differs (failures are not 0, nor is a story without images), the test
says so.
"""

from __future__ import annotations

import base64
import io
import itertools
import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.optimize
import torch
import torch.nn.functional as F
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from omegaconf import OmegaConf
from PIL import Image, ImageOps
from support.llm.agent_parts import agent_of
from support.llm.rehearsals import ROOT, Stand
from torch import Tensor

from dsd_lightning.agents import Sampling
from dsd_lightning.agents.providers.openai_chat import OpenAIChat
from dsd_lightning.evaluation.command import score, table
from dsd_lightning.evaluation.errors import CoverageTooLow, EvaluationError
from dsd_lightning.evaluation.judging.judgements import MEASURES, Record
from dsd_lightning.evaluation.judging.protocol import Protocol
from dsd_lightning.evaluation.samples.result_folder import save_jpeg
from dsd_lightning.evaluation.stories.alignment import (
    DIMENSIONS,
    SINGLE,
    AlignmentJudging,
    AlignmentRubrics,
    Cutouts,
    SingleActionJudging,
    dimensions_of,
)
from dsd_lightning.evaluation.stories.characters import cast_of, characters_of, crops, occm
from dsd_lightning.evaluation.stories.dataset import StoryBenchmark, vistorybench
from dsd_lightning.evaluation.stories.outputs import StoryImages
from dsd_lightning.evaluation.stories.report import alignment
from dsd_lightning.evaluation.stories.style import style_of
from dsd_lightning.offline import stories

STAGES = (("Ann",), ("Ann", "Bob"), (), ("Nobody",), ("Bob",))
"""Who is on stage, shot by shot; Nobody has no images."""

Box = tuple[float, float, float, float]


def noise(seed: int, size: tuple[int, int] = (40, 30)) -> Image.Image:
    values = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    return Image.fromarray(values).resize(size, Image.Resampling.BICUBIC)


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    """Return a dataset of stories 2, 8 and 10, with all that the format knows."""
    root = tmp_path / "dataset"
    for number in (2, 8, 10):
        folder = root / "ViStory" / f"{number:02d}"
        for order, name in enumerate(("Ann", "Bob")):
            for each in range(2):
                save_jpeg(noise(100 * number + 10 * order + each), folder / "image" / name / f"{each:02d}.jpg")
        characters = {
            name: {
                "name_en": name,
                "name_ch": f"{name} ch",
                "prompt_en": f"looks of {name}",
                "prompt_ch": "",
                "tag": "non_human",
            }
            for name in ("Ann", "Bob", "Nobody")
        }
        shots = [
            {
                "index": index,
                **{
                    key: {"en": f"{word} {index}", "ch": f"{word} ch {index}"}
                    for key, word in (
                        ("Setting Description", "scene"),
                        ("Plot Correspondence", "plot"),
                        ("Static Shot Description", "action"),
                        ("Shot Perspective Design", "camera"),
                    )
                },
                "Characters Appearing": {"en": list(stage), "ch": [f"{name} ch" for name in stage]},
            }
            for index, stage in enumerate(STAGES, 1)
        ]
        content = {"Story_type": {"en": "tale", "ch": "tale ch"}, "Shots": shots, "Characters": characters}
        (folder / "story.json").write_text("\ufeff" + json.dumps(content), encoding="utf-8")
    return root


def images_of(benchmark: StoryBenchmark, folder: Path, leave_out: int = 0) -> StoryImages:
    samples = StoryImages(folder, "method")
    for number, case in enumerate(benchmark.cases()):
        if case.prompt.index != leave_out:
            samples.write(case, noise(1000 + number), noise(0))
    return samples


def test_the_dataset_is_read_in_numeric_order_with_the_published_prompt_and_references(dataset: Path) -> None:
    benchmark = vistorybench(dataset)
    assert [story.name for story in benchmark.stories] == ["02", "08", "10"]
    assert [story.name for story in vistorybench(dataset / "ViStory", split="lite").stories] == ["08"]
    story = benchmark.stories[0]
    assert story.prompt(story.shots[1]) == ("camera 2;plot 2;action 2;Ann is looks of Ann;Bob is looks of Bob;scene 2;")
    names = [[file.parent.name + "/" + file.name for file in story.first_references(shot)] for shot in story.shots]
    # As published, the story's first reference stands in for an empty stage and for a character without images.
    assert names == [["Ann/00.jpg"], ["Ann/00.jpg", "Bob/00.jpg"], ["Ann/00.jpg"], ["Ann/00.jpg"], ["Bob/00.jpg"]]
    chinese = vistorybench(dataset, language="ch").stories[0]
    assert (chinese.shots[0].scene, chinese.shots[1].on_stage) == ("scene ch 1", ("Ann", "Bob"))
    assert [case.subject.reference.parent.name for case in benchmark.cases()[:5]] == ["Ann", "Ann", "Ann", "Ann", "Bob"]


WRONG: dict[str, tuple[Callable[[Path], object], dict[str, Any]]] = {
    "is no copy of ViStoryBench": (lambda file: file.unlink(), {}),
    "story.json: 'Shots' is missing": (lambda file: file.write_text('{"Characters": {}}'), {}),
    "is not JSON": (lambda file: file.write_text("{"), {}),
    "language='de'": (lambda file: None, {"language": "de"}),
    "holds no story of split=lite": (lambda file: None, {"split": "lite"}),
    "stories=0": (lambda file: None, {"stories": 0}),
}


@pytest.mark.parametrize("message", WRONG)
def test_other_folders_and_values_are_refused_by_name(message: str, tmp_path: Path) -> None:
    change, values = WRONG[message]
    stories.write(tmp_path, stories=2, shots=1)
    (tmp_path / "01" / "story.json").unlink()
    change(tmp_path / "02" / "story.json")
    with pytest.raises(EvaluationError, match=message):
        vistorybench(tmp_path, **values)


@pytest.mark.parametrize("place", ["02/shots/shot_{}.png", "shots/02/{}.jpg", "02/a_shot_{}.JPG"])
def test_images_are_found_in_every_layout_of_the_published_reader(place: str, dataset: Path, tmp_path: Path) -> None:
    for index in (1, 10, 2):
        file = tmp_path / "outputs" / place.format(f"{index:02d}")
        file.parent.mkdir(parents=True, exist_ok=True)
        noise(index).save(file)
    (tmp_path / "outputs" / place.format("x")).write_bytes(b"")
    samples = StoryImages(tmp_path / "outputs")
    assert list(samples.shots("02")) == [1, 2, 10]
    cases = vistorybench(dataset, stories=1).cases()
    assert [samples.image(case) is not None for case in cases] == [True, True, False, False, False]


# --- Values of the published code.


class Projection:
    """A random linear embedding of small images: an encoder whose cosines are far from 1."""

    name, backbone = "projection", "random"

    def images(self, images: Any) -> Tensor:
        matrix = torch.randn(3 * 8 * 8, 12, generator=torch.Generator().manual_seed(0))
        pixels = [np.asarray(each.convert("RGB").resize((8, 8)), dtype=np.float32).ravel() for each in images]
        return F.normalize((torch.from_numpy(np.stack(pixels)) / 255 - 0.5) @ matrix, dim=-1)


def embed(file: Path | Image.Image) -> Tensor:
    image = file if isinstance(file, Image.Image) else Image.open(file).convert("RGB")
    return Projection().images([image])


def test_style_similarities_are_those_of_csd_evaluator(dataset: Path, tmp_path: Path) -> None:
    benchmark = vistorybench(dataset, stories=1)
    images = images_of(benchmark, tmp_path / "out", leave_out=4).shots("02")
    root = dataset / "ViStory" / "02" / "image"
    own = [F.cosine_similarity(embed(a), embed(b)).item() for a, b in itertools.combinations(images.values(), 2)]
    by_shot = []
    for index, stage in enumerate(STAGES, 1):
        if index in images:
            per_character = [
                F.cosine_similarity(embed(root / (key if key != "Nobody" else "Ann") / "00.jpg"), embed(images[index]))
                for key in (stage or ("Ann",))
            ]
            by_shot.append(sum(float(each) for each in per_character) / len(per_character))
    style = style_of(benchmark.stories[0], images, Projection())
    assert style == pytest.approx((sum(own) / len(own), sum(by_shot) / len(by_shot)), abs=1e-5)
    assert abs(style[0] - style[1]) > 0.01
    # The published code says 0 where there is nothing to compare.
    assert all(math.isnan(each) for each in style_of(benchmark.stories[0], {}, Projection()))


class Halves:
    """Finds the left and the right half of shots, the latter first, and the whole of references."""

    name = "halves"

    def boxes(self, image: Image.Image) -> list[Box]:
        wide, high = image.size
        return [(wide / 2, 0, wide, high), (0, 0, wide / 2, high)] if wide == 40 else [(0, 0, wide, high)]


def test_characters_are_counted_matched_and_compared_as_in_cids_evaluator(dataset: Path, tmp_path: Path) -> None:
    benchmark = vistorybench(dataset, stories=1)
    images = images_of(benchmark, tmp_path / "out").shots("02")
    root = dataset / "ViStory" / "02" / "image"
    halves = {
        index: [Image.open(file).convert("RGB").crop(box) for box in ((20, 0, 40, 30), (0, 0, 20, 30))]
        for index, file in images.items()
    }
    references = {}
    for name in ("Ann", "Bob"):
        crops = [Image.open(file).convert("RGB").crop((20, 0, 40, 30)) for file in sorted((root / name).iterdir())]
        references[name] = crops
    counts, matched = [], {"Ann": [], "Bob": [], "Nobody": []}  # type: ignore[var-annotated]
    for index, stage in enumerate(STAGES, 1):
        if not stage:
            continue
        counts.append(100 * np.exp(-float(abs(2 - len(stage))) / (1e-6 + len(stage))))
        scores = torch.full((len(stage), 2), -1e6)
        for row, key in enumerate(stage):
            if key in references:
                embeddings = torch.cat([embed(each) for each in references[key]])
                scores[row] = (torch.cat([embed(each) for each in halves[index]]) @ embeddings.T).max(dim=1).values
        for row, column in zip(*scipy.optimize.linear_sum_assignment(-scores.numpy()), strict=True):
            if stage[row] in references:
                matched[stage[row]].append(embed(halves[index][column]))
    cross, own, copied = [], [], []
    for key, cutouts in matched.items():
        if not cutouts:
            cross.append(0.0)
            own.append(0.0)
            continue
        vectors = torch.cat(cutouts)
        cross.append((vectors @ torch.cat([embed(each) for each in references[key]]).T).mean().item())
        upper = torch.triu_indices(len(cutouts), len(cutouts), offset=1)
        own.append((vectors @ vectors.T)[upper[0], upper[1]].mean().item() if len(cutouts) > 1 else 1.0)
        sides = torch.cat([embed(references[key][0]), embed(ImageOps.mirror(references[key][0]))])
        copied.append(torch.softmax((vectors @ sides.T) / 0.01, dim=1)[:, 0].mean().item())
    result = characters_of(benchmark.stories[0], images, Halves(), Projection())
    assert (result.occm, result.cross, result.own, result.copied) == pytest.approx(
        (np.mean(counts), np.mean(cross), np.mean(own), np.mean(copied)), abs=1e-5
    )
    assert occm(2, 2) == 100
    assert occm(1, 3) == pytest.approx(100 * math.exp(-2), rel=1e-5)
    assert math.isnan(characters_of(benchmark.stories[0], images, Halves(), None).cross)


# --- Alignment.


def judging(dataset: Path, tmp_path: Path, agent: Any, protocol: Protocol) -> tuple[AlignmentJudging, StoryBenchmark]:
    benchmark = vistorybench(dataset, stories=2)
    record = Record(tmp_path / "judgements.jsonl")
    return AlignmentJudging(agent, AlignmentRubrics.read(None), protocol, record, (), benchmark), benchmark


def test_the_judge_is_asked_in_one_turn_as_published(dataset: Path, tmp_path: Path) -> None:
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        config = compose("evaluate", ["benchmark=vistorybench", "benchmark.folder=x", "protocol=vistorybench", "out=x"])
    provider = OpenAIChat("gpt", "http://127.0.0.1/v1", None, max_tokens_field="max_tokens")
    agent = agent_of(provider, tmp_path, sampling=Sampling(4096))
    asks, benchmark = judging(dataset, tmp_path, agent, instantiate(config.protocol))
    samples = images_of(benchmark, tmp_path / "out")
    left = asks.open_questions(samples, benchmark.cases())[1]
    assert [question.measure for question, _, _ in left[:3]] == list(DIMENSIONS)
    for (question, image, reference), word in zip(left[:3], ("scene", "action", "camera"), strict=True):
        request = asks.request(question, image, reference)
        body = provider._body(request.messages, request.sampling or agent.sampling)
        buffer = io.BytesIO()
        Image.open(image).resize((512, 512)).convert("RGB").save(buffer, format="JPEG")
        url = f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}"
        rubric = AlignmentRubrics.read(None).by_dimension[question.measure].text
        assert body == {
            "model": "gpt",
            "max_tokens": 512,
            "temperature": 0.0,
            "seed": 123,
            "messages": [
                {
                    "role": "user",
                    "content": [
                        {"type": "text", "text": rubric},
                        {"type": "text", "text": f"{word} 1"},
                        {"type": "image_url", "image_url": {"url": url}},
                    ],
                }
            ],
        }


def test_failures_of_the_judge_are_missing_and_not_zero(dataset: Path, tmp_path: Path) -> None:
    def say(text: str) -> str:
        if "camera" in text.rsplit("\n", 1)[-1]:
            return "I see nothing."
        return "Score: 0" if "action 1" in text else "Score: 3"

    protocol = Protocol(DIMENSIONS, image_side=32)
    with agent_of(Stand(say), tmp_path) as agent:
        asks, benchmark = judging(dataset, tmp_path, agent, protocol)
        samples = images_of(benchmark, tmp_path / "out", leave_out=5)
        judgements = asks.run(samples, benchmark.cases(), estimate=False)
    metrics = alignment(judgements)
    assert math.isnan(metrics["camera"].mean)
    assert (metrics["camera"].scored, metrics["camera"].missing) == (0, 10)
    assert (metrics["character_action"].mean, metrics["character_action"].missing) == ((0 + 3 * 3) / 4, 2)
    assert metrics["scene"].mean == 3
    assert metrics["alignment"].mean == pytest.approx((2.25 + 3) / 2)


# --- The command.


def run(tmp_path: Path, *overrides: str) -> str:
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        config = compose(
            "evaluate",
            [
                "benchmark=vistorybench",
                f"benchmark.folder={tmp_path / 'dataset'}",
                "detector=miniature",
                "story.identity=pixels",
                f"out={tmp_path / 'out'}",
                f"agents.folder={tmp_path / 'agents'}",
                *overrides,
            ],
        )
    return score(config)


@pytest.mark.long
def test_a_miniature_copy_of_the_dataset_is_scored_offline(tmp_path: Path) -> None:
    stories.write(tmp_path / "dataset", stories=2, shots=2)
    benchmark = vistorybench(tmp_path / "dataset")
    samples = StoryImages(tmp_path / "samples")
    for case in benchmark.cases():
        samples.write(case, Image.open(case.subject.reference), noise(0))
    given = ["method=images", "method.name=copies", f"method.samples={tmp_path / 'samples'}"]
    printed = run(tmp_path, *given)
    assert "ViStoryBench. Judge: miniature-judge-1." in printed
    assert all(heading in printed for heading in ("Style", "CIDS", "Alignment", "OCCM", "Copy-paste"))
    assert "2 stories" in printed
    assert "characters: miniature silhouettes" in printed
    lines = (tmp_path / "out" / "tables" / "copies.csv").read_text().splitlines()
    values = {line.split(",")[1]: line.split(",")[2:] for line in lines[1:]}
    assert float(values["style_cross"][0]) == pytest.approx(1, abs=1e-3)  # each shot is its reference
    assert float(values["occm"][0]) == pytest.approx(100)
    assert float(values["copy_paste"][0]) > 0.7  # 0.5 is none; some characters are their own mirror images
    assert values["scene"][3:] == ["2", "4", "0"]
    next((tmp_path / "samples" / "01" / "shots").iterdir()).unlink()
    with pytest.raises(CoverageTooLow, match="3 of 4 shots have an image"):
        run(tmp_path, *given)
    printed = run(tmp_path, *given, "coverage=0.5")
    assert "copies, without a score: no_image 3" in printed
    assert "1 missing" in printed
    with pytest.raises(EvaluationError, match=r"story\.rubrics=FOLDER"):
        run(tmp_path, *given, "protocol=dreambenchpp")
    with pytest.raises(EvaluationError, match=r"story\.style=vgg: choose pixels, clip"):
        run(tmp_path, *given, "story.style=vgg")


def test_each_characters_own_action_is_judged_on_its_cutout(tmp_path: Path) -> None:
    stories.write(tmp_path / "dataset", stories=2, shots=2)
    benchmark = vistorybench(tmp_path / "dataset")
    samples = StoryImages(tmp_path / "samples")
    for case in benchmark.cases():
        samples.write(case, Image.open(case.subject.reference), noise(0))
    given = ["method=images", "method.name=copies", f"method.samples={tmp_path / 'samples'}"]
    printed = run(tmp_path, *given, "story.single_character_action=true")
    assert "Single" in printed
    names = [file.name for file in sorted((tmp_path / "out" / "characters" / "copies" / "01").iterdir())]
    assert names == ["shot_01-Character A.png", "shot_02-Character B.png"]
    record = Record(tmp_path / "out" / "judgements" / "copies.characters.jsonl").latest()
    assert {(each.measure, each.copy) for each in record} == {("single_character_action", 0)}
    names = {re.sub(r".*\n", "", each.text, flags=re.DOTALL) for each in record}
    assert names == {f"Evaluated Character Name is Character {name}" for name in "AB"}
    assert json.loads(record[0].setup)["image_detail"] == "low"
    with pytest.raises(EvaluationError, match=r"story\.single_character_action=true.*needs"):
        run(tmp_path, *given, "story.single_character_action=true", "story.identity=null")


def test_single_actions_are_averaged_by_shot_and_enter_the_mean(dataset: Path, tmp_path: Path) -> None:
    with agent_of(Stand(lambda text: "Score: 1" if "Name is Ann" in text else "Score: 4"), tmp_path) as agent:
        asks, benchmark = judging(dataset, tmp_path, agent, Protocol(DIMENSIONS, image_side=32))
        samples = images_of(benchmark, tmp_path / "out")
        rubrics = AlignmentRubrics.read(None, (*DIMENSIONS, SINGLE))
        record = Record(tmp_path / "characters.jsonl")
        closer = SingleActionJudging(agent, rubrics, asks.protocol, record, (), benchmark)
        cutouts = Cutouts(tmp_path / "cutouts", "method", benchmark)
        for story in benchmark.stories:
            cutouts.add(story.name, cast_of(story, samples.shots(story.name), Halves(), Projection()).cutouts)
        judgements = closer.run(cutouts, cutouts.cases, estimate=False)
        # Shots of Ann, of both, and of Bob; Nobody has no references.
        assert sorted((each.prompt, each.copy) for each in judgements if each.subject == "02") == [
            (1, 0),
            (2, 0),
            (2, 1),
            (5, 0),
        ]
        both = alignment(judgements + asks.run(samples, benchmark.cases(), estimate=False))
    assert both[SINGLE].mean == pytest.approx((1 + (1 + 4) / 2 + 4) / 3)
    assert both["alignment"].mean == pytest.approx((4 + 4 + 4 + both[SINGLE].mean) / 4)


def test_the_dimensions_of_a_protocol_are_judged_and_others_refused(tmp_path: Path) -> None:
    stories.write(tmp_path / "dataset", stories=1, shots=1)
    samples = StoryImages(tmp_path / "samples")
    for case in vistorybench(tmp_path / "dataset").cases():
        samples.write(case, Image.open(case.subject.reference), noise(0))
    given = [
        "method=images",
        "method.name=m",
        f"method.samples={tmp_path / 'samples'}",
        "detector=none",
        "story.style=null",
    ]
    run(tmp_path, *given, "protocol.measures=[scene]")
    assert list(json.loads((tmp_path / "out" / "scores" / "m.json").read_text())["metrics"]) == ["scene", "alignment"]
    assert dimensions_of(MEASURES) == DIMENSIONS  # protocol=ours
    for measures, message in (("[cp]", "'cp' is none of them"), ("[]", "scene, character_action, camera$")):
        with pytest.raises(EvaluationError, match=rf"protocol\.measures=\{measures[:-1]}\].*{message}"):
            run(tmp_path, *given, f"protocol.measures={measures}")


def test_methods_are_compared_in_one_table_and_refused_if_measured_otherwise(tmp_path: Path) -> None:
    stories.write(tmp_path / "dataset", stories=3, shots=2)
    benchmark = vistorybench(tmp_path / "dataset")
    for name in ("copies", "noise"):
        samples = StoryImages(tmp_path / name)
        for number, case in enumerate(benchmark.cases()):
            samples.write(case, Image.open(case.subject.reference) if name == "copies" else noise(number), noise(0))
        given = ["method=images", f"method.name={name}", f"method.samples={tmp_path / name}", "story.alignment=false"]
        run(tmp_path, *given)
    rows = [str(tmp_path / "out" / "scores" / f"{name}.json") for name in ("copies", "noise")]
    settings = {"rule": "sample", "coverage": 0.95, "out": str(tmp_path / "tables"), "name": "both"}
    printed = table(OmegaConf.create({"rows": rows, **settings}))
    assert re.search(r"^copies .*^noise ", printed, re.MULTILINE | re.DOTALL)
    text = (tmp_path / "tables" / "both.txt").read_text()
    assert re.search(r"style_cross: copies - noise = \+\d\.\d+ .*, p = 0\.\d+ \(permutation over 3 stories\)", text)
    assert len((tmp_path / "tables" / "both.csv").read_text().splitlines()) == 1 + 2 * 6
    run(tmp_path, *given, "story.style=null")
    with pytest.raises(EvaluationError, match=r"rows of different style cannot be in one table.*: none and pixel"):
        table(OmegaConf.create({"rows": rows, **settings}))
    with pytest.raises(EvaluationError, match="there is no file"):
        table(OmegaConf.create({"rows": [rows[0], "x.json"], **settings}))
    Path(rows[1]).write_text("[]")
    with pytest.raises(EvaluationError, match="no file of a method's scores on stories"):
        table(OmegaConf.create({"rows": rows, **settings}))


def test_cutouts_have_the_published_pixels() -> None:
    """Its code cuts centre and size to whole pixels, and Pillow rounds corners to the even number."""

    class Odd:
        name = "odd"

        def boxes(self, image: Image.Image) -> list[Box]:
            return [(0.5, 1.2, 12.4, 20.9), (-9.0, 3.0, 60.0, 9.0), (50.0, 3.0, 60.0, 9.0)]

    image = noise(1)
    cutouts = crops(image, Odd())
    expected = [image.crop(box) for box in ((0, 2, 12, 20), (0, 3, 40, 9))]
    assert [each.tobytes() for each in cutouts] == [each.tobytes() for each in expected]


@pytest.mark.long
def test_a_models_stories_are_generated_judged_and_measured(tmp_path: Path) -> None:
    stories.write(tmp_path / "dataset", stories=1, shots=2)
    printed = run(tmp_path, "method.maker.sampling.steps=2")
    assert printed == run(tmp_path, "method.maker.sampling.steps=2")
    assert len(StoryImages(tmp_path / "out" / "samples" / "ours").shots("01")) == 2
