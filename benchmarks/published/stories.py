"""Compares CSD's embeddings and ViStoryBench's metrics and requests with the public code."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from hydra.utils import instantiate
from omegaconf import DictConfig
from PIL import Image

from benchmarks.published import inputs
from benchmarks.published.comparison import Comparison, Theirs, bodies, configured, encoder_of, judge
from benchmarks.published.stand_ins import in_parts, reply_to
from benchmarks.published.their_stories import TIMESTAMP
from dsd_lightning.evaluation.judging.judgements import Judgement, Record
from dsd_lightning.evaluation.similarity.encoders import Encoder
from dsd_lightning.evaluation.stories.alignment import (
    DIMENSIONS,
    SINGLE,
    AlignmentJudging,
    AlignmentRubrics,
    Cutouts,
    SingleActionJudging,
)
from dsd_lightning.evaluation.stories.characters import cast_of, scores_of
from dsd_lightning.evaluation.stories.dataset import StoryBenchmark, vistorybench
from dsd_lightning.evaluation.stories.outputs import StoryImages
from dsd_lightning.evaluation.stories.report import alignment
from dsd_lightning.evaluation.stories.style import style_of
from dsd_lightning.images.pixels import load_rgb

EVALUATORS = {"csd": "csd_evaluator", "cids": "cids_evaluator", "alignment": "prompt_align_evaluator"}
"""Of ViStoryBench, by what they are compared as."""


def compare_csd(theirs: Theirs, folder: Path, compared: Comparison) -> None:
    """Compare style embeddings with CSD's own model on images that need no resizing."""
    weights = folder / "weights" / "pretrain" / "csd" / "csd_vit-large.pth"
    files = []
    for number in range(4):
        files.append(folder / f"square{number}.png")
        inputs.image("square", number).resize((224, 224)).save(files[-1])
    published = theirs.run("csd", weights=str(weights), sizes=inputs.CSD_SIZES, images=list(map(str, files)))
    encoder = encoder_of("csd", weights, configured("benchmark=vistorybench", "benchmark.folder=."))
    ours = encoder.images(map(load_rgb, files))
    compared.numbers(
        "CSD embeddings", "CSD/model.py", ours.flatten().tolist(), torch.tensor(published["style"]).flatten().tolist()
    )


class TableDetector:
    """Returns the boxes that `inputs.boxes_of` has for an image.

    Args:
        files: images.
    """

    name = "table"

    def __init__(self, files: Sequence[Path]) -> None:
        self._files = {hashlib.sha256(load_rgb(file).tobytes()).digest(): file for file in files}

    def boxes(self, image: Image.Image) -> list[tuple[float, float, float, float]]:
        """Return left, top, right and bottom, pixels, the most certain first."""
        rows = inputs.boxes_of(self._files[hashlib.sha256(image.tobytes()).digest()])
        scale = np.array([image.width, image.height, image.width, image.height], np.float32)
        boxes = []
        for row in sorted(rows, key=lambda each: -each[4]):
            x, y, width, height = np.array(row[:4], np.float32)
            corners = np.array([x - width / 2, y - height / 2, x + width / 2, y + height / 2], np.float32) * scale
            boxes.append((float(corners[0]), float(corners[1]), float(corners[2]), float(corners[3])))
        return boxes


def write_shots(benchmark: StoryBenchmark, outputs: Path) -> StoryImages:
    """Write images of all shots but one in the layout of ViStoryBench's outputs."""
    samples = StoryImages(outputs / "method" / "mode" / "en" / TIMESTAMP, "method")
    for case in benchmark.cases():
        if (case.subject.name, case.prompt.index) != ("02", 5):
            samples.write(case, inputs.image(case.subject.name, case.prompt.index), Image.open(case.subject.reference))
    return samples


CHARACTERS = {"cids_self_mean": "own", "cids_cross_mean": "cross", "copy_paste_score": "copied"}
"""Attributes of `scores_of` by the names of CIDS."""


@dataclass(frozen=True)
class Published:
    """A small copy of ViStoryBench's dataset, a method's images for it, and what the public code says of them.

    Attributes:
        config: of our evaluation of the same dataset.
        detector: finds what the public code is given as found.
        identity: compares cut-outs by the CLIP that the public code reads.
        results: of the public code.
    """

    benchmark: StoryBenchmark
    samples: StoryImages
    config: DictConfig
    detector: TableDetector
    identity: Encoder
    results: dict[str, Any]

    @property
    def names(self) -> list[str]:
        """Return the names of the stories."""
        return [story.name for story in self.benchmark.stories]


def published(
    theirs: Theirs,
    function: str,
    data: Path,
    weights: Path,
    count: int,
    *settings: str,
    realistic: Collection[str] = (),
    **given: Any,
) -> Published:
    """Write stories and images of their shots, and have the public code score them.

    Args:
        function: of `their_stories`.
        data: folder to write to.
        weights: the folder of networks that the public code reads.
        count: of stories.
        settings: of our evaluation, beside its dataset.
        realistic: names of the characters who are tagged as realistic people.
        given: what else the function needs.
    """
    inputs.write_stories(data / "dataset", count, realistic)
    benchmark = vistorybench(data / "dataset")
    samples = write_shots(benchmark, data / "outputs")
    files = sorted([*(data / "outputs").rglob("*.png"), *(data / "dataset").rglob("*.jpg")])
    results = theirs.run(
        function,
        **{name: str(data / name) for name in ("dataset", "outputs", "results")},
        pretrain=str(weights),
        boxes={str(file): inputs.boxes_of(file) for file in files},
        stories=[story.name for story in benchmark.stories],
        **given,
    )
    config = configured("benchmark=vistorybench", f"benchmark.folder={data / 'dataset'}", *settings)
    identity = encoder_of("clip", weights / "openai" / "clip-vit-large-patch14", config)
    return Published(benchmark, samples, config, TableDetector(files), identity, results)


def compare_vistorybench(theirs: Theirs, folder: Path, compared: Comparison) -> None:
    """Compare style, prompt alignment, CIDS, OCCM and the copy-paste rate of stories."""
    weights = folder / "weights" / "pretrain"
    given = published(
        theirs, "vistorybench", folder / "vistory", weights, 3, "protocol=vistorybench", sizes=inputs.CSD_SIZES
    )
    benchmark, samples, names, results = given.benchmark, given.samples, given.names, given.results
    style = encoder_of("csd", weights / "csd" / "csd_vit-large.pth", given.config)
    values: dict[str, list[float]] = {}
    cutouts = Cutouts(folder / "cutouts", "method", benchmark)
    for story in benchmark.stories:
        images = samples.shots(story.name)
        own, cross = style_of(story, images, style)
        cast = cast_of(story, images, given.detector, given.identity)
        cutouts.add(story.name, cast.cutouts)
        scores = scores_of(cast)
        for name, value in {
            "self_csd": own,
            "cross_csd": cross,
            "occm": scores.occm,
            **{name: getattr(scores, attribute) for name, attribute in CHARACTERS.items()},
        }.items():
            values.setdefault(name, []).append(value)
    for name, ours in values.items():
        source = "csd" if name.endswith("csd") else "cids"
        wanted = [results[source][story]["metrics"][name] for story in names]
        compared.numbers(f"ViStoryBench {name} of each story", f"{EVALUATORS[source]}.py", ours, wanted)
        if source == "cids" and name != "copy_paste_score":
            rounded = [results["rounded"][story]["metrics"][name] for story in names]
            compared.numbers(
                f"ViStoryBench {name}, 4 digits", "cids_evaluator.py", [round(each, 4) for each in ours], rounded
            )
    rubrics = AlignmentRubrics.read(
        theirs.checkouts["vistorybench"] / "vistorybench/bench/prompt_align/user_prompts", (*DIMENSIONS, SINGLE)
    )
    protocol = instantiate(given.config.protocol)
    judging = AlignmentJudging(judge(), rubrics, protocol, Record(folder / "alignment"), (), benchmark)
    closer = SingleActionJudging(judge(), rubrics, protocol, Record(folder / "single"), (), benchmark)
    judgements = []
    for each, chosen, cases, source in (
        (judging, samples, benchmark.cases(), "alignment"),
        (closer, cutouts, cutouts.cases, "cids"),
    ):
        questions = each.open_questions(chosen, cases)[1]
        asked = bodies(each, questions)
        wanted = [{**body, "messages": in_parts(body["messages"])} for body in results["requests"][source]]
        compared.equal(f"ViStoryBench requests, {source}", f"{EVALUATORS[source]}.py", asked, wanted)
        judgements += [
            question.with_reply(reply_to(body["messages"]))
            for (question, _, _), body in zip(questions, asked, strict=True)
        ]
    for name, metric in alignment(judgements).items():
        if name in DIMENSIONS:
            wanted = [results["alignment"][story]["metrics"][name] for story in names]
            ours = [metric.by_story[story] for story in names]
            compared.numbers(f"ViStoryBench {name} of each story", "prompt_align_evaluator.py", ours, wanted)
    compared.equal(
        "ViStoryBench single_character_action of each story, rounded as theirs",
        "cids_evaluator.py",
        [rounded_as_published([each for each in judgements if each.measure == SINGLE], story) for story in names],
        [results["rounded"][story]["metrics"][SINGLE] for story in names],
    )


def rounded_as_published(judgements: Sequence[Judgement], story: str) -> int:
    """Return a story's score of single characters' actions: shots and stories are rounded to whole numbers; ours are not."""
    shots: dict[int, list[int]] = {}
    for each in judgements:
        if each.subject == story and each.score is not None:
            shots.setdefault(each.prompt, []).append(each.score)
    means = [round(sum(scores) / len(scores)) for scores in shots.values()]
    return round(sum(means) / len(means))
