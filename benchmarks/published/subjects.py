"""Compares DreamBench++'s metrics and requests, and DreamBench's DINO, with the public code."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from hydra.utils import instantiate
from PIL import Image

from benchmarks.published import inputs
from benchmarks.published.comparison import Comparison, Theirs, bodies, configured, encoder_of, judge
from benchmarks.published.stand_ins import in_parts, reply_to
from dsd_lightning.evaluation.judging.judgements import Record
from dsd_lightning.evaluation.judging.replies import Score, parse
from dsd_lightning.evaluation.judging.rubrics import Rubrics
from dsd_lightning.evaluation.judging.run import Judging
from dsd_lightning.evaluation.samples.benchmark import dreambench, dreambenchpp
from dsd_lightning.evaluation.samples.result_folder import Samples
from dsd_lightning.evaluation.similarity.measures import measure
from dsd_lightning.evaluation.user_study.ratings import alpha
from dsd_lightning.images.pixels import load_rgb


def compare_dreambenchpp(theirs: Theirs, folder: Path, compared: Comparison) -> None:
    """Compare similarities, requests to the judge, replies read, agreement and the dataset."""
    weights, data = folder / "weights", folder / "dreambenchpp"
    inputs.write_dreambenchpp(data / "data")
    prompts = theirs.checkouts["dreambench_plus"] / "dreambench_plus"
    cases = dreambenchpp(data).cases()
    samples = Samples(folder / "samples", "method")
    for case in cases:
        samples.write(case, inputs.image(case.name, case.prompt.index), Image.open(case.subject.reference))
        # The reference itself, not encoded again.
        source = samples.folder / "src_image" / case.subject.name / f"{case.prompt.index}_0.jpg"
        source.write_bytes(case.subject.reference.read_bytes())
    rng = np.random.default_rng(0)
    ratings = rng.integers(0, 5, (3, 40)).astype(float)
    ratings[rng.uniform(size=ratings.shape) < 0.2] = np.nan
    files = []
    for rater, row in enumerate(ratings):
        files.append(folder / f"rater{rater}.json")
        files[-1].write_text(
            json.dumps({f"image-{unit}": None if np.isnan(v) else int(v) for unit, v in enumerate(row)})
        )
    shots = [json.loads(file.read_text()) for file in sorted((prompts / "few_shot").glob("*.json"))]
    replies = [each["content"] for shot in shots for each in shot]
    judged = [cases[0], cases[-1]]
    published = theirs.run(
        "dreambench_plus",
        dino_weights={"dino_vits8": f"{weights}/vits8.pth"},
        clip=f"{weights}/clip32",
        dinov2=f"{weights}/dinov2",
        samples=str(samples.folder),
        data=str(data / "data"),
        ratings=list(map(str, files)),
        judged=[(case.subject.name, case.prompt.index) for case in judged],
        replies=replies,
    )
    config = configured(
        "benchmark=dreambenchpp", f"benchmark.folder={theirs.checkouts['dreambench_plus']}", "protocol=dreambenchpp"
    )
    encoders = configured("benchmark=vistorybench", "benchmark.folder=.")
    paths = {"CLIP-I": ("clip", "clip32"), "DINO": ("dino_s8", "vits8"), "DINOv2": ("dinov2", "dinov2")}
    for name, (key, place) in paths.items():
        encoder = encoder_of(key, weights / place, encoders)
        results = [load_rgb(samples.image(case)) for case in cases]  # type: ignore[arg-type]
        vectors = encoder.images(results)
        subjects = list(dict.fromkeys(case.subject for case in cases))
        reference_vectors = encoder.images(load_rgb(each.reference) for each in subjects)
        references = reference_vectors[[subjects.index(case.subject) for case in cases]]
        by_image = {name: (vectors * references).sum(dim=1)}
        if name == "CLIP-I":
            by_image["CLIP-T"] = (vectors * encoder.texts(case.prompt.text for case in cases)).sum(dim=1)
        means = {each.name: each.value for each in measure(samples, cases, [encoder])}
        for each, values in by_image.items():
            file = f"{'clip' if key == 'clip' else 'dino'}_score.py"
            keys = [f"{case.subject.name}-{case.prompt.index}_0" for case in cases]
            wanted = [published["by_image"][each][key] / 100 for key in keys]
            compared.numbers(f"DreamBench++ {each} of each image", file, values.tolist(), wanted)
            compared.numbers(f"DreamBench++ {each}, mean", file, [means[each]], [published["means"][each] / 100])
    protocol = instantiate(config.protocol)
    judging = Judging(judge(), Rubrics(config.rubrics, ("cp", "pf")), protocol, Record(folder / "judgements"))
    questions = [
        each
        for each in judging.open_questions(samples, judged)[1]
        if each[0].repeat == 0  # further runs ask the same again
    ]
    asked = bodies(judging, questions)
    wanted = [{**body, "messages": in_parts(body["messages"])} for body in published["requests"]]
    for key in ("messages", "temperature"):
        ours = [body[key] for body in asked]
        compared.equal(f"DreamBench++ requests: {key}", "eval_*.py", ours, [body[key] for body in wanted])
    read = [parse(reply_to(body["messages"])) for body in asked]
    compared.equal(
        "DreamBench++ scores",
        "eval_*.py",
        [each.value for each in read if isinstance(each, Score)],
        published["scores"],
    )
    # Its code leaves out the one that states its score twice.
    chosen = [
        (parse(reply), score) for reply, score in zip(replies, published["read"], strict=True) if score is not None
    ]
    values = [each.value if isinstance(each, Score) else None for each, _ in chosen]
    scores = [score for _, score in chosen]
    compared.equal("DreamBench++ published replies that its code reads", "eval_prompt_following.py", values, scores)
    compared.equal(
        "DreamBench++ alpha, 3 digits",
        "krippendorff_analysis.py",
        [round(alpha(ratings, "interval"), 3)],
        [published["alpha"]],
    )
    prompts_of = {each.name: [prompt.text for prompt in each.prompts] for each in dreambenchpp(data).subjects}
    compared.equal("DreamBench++ subjects", "dreambench_plus_dataset.py", [prompts_of], [published["subjects"]])


def compare_dreambench(theirs: Theirs, folder: Path, compared: Comparison) -> None:
    """Compare DreamBench's DINO: the mean over all pairs of a result and a real image."""
    data = folder / "dreambench"
    inputs.write_dreambench(data)
    cases = dreambench(data).cases()
    samples = Samples(folder / "dreambench_samples", "method")
    for case in cases:
        samples.write(case, inputs.image(case.name, case.prompt.index), Image.open(case.subject.reference))
    pairs = [[(str(real), str(samples.image(case))) for real in case.subject.real_images] for case in cases]
    published = theirs.run("imagen_hub", dino_weights={"dino_vits16": f"{folder}/weights/vits16.pth"}, pairs=pairs)
    encoder = encoder_of(
        "dino", folder / "weights" / "vits16", configured("benchmark=vistorybench", "benchmark.folder=.")
    )
    ours = [
        float(encoder.images([load_rgb(Path(real))])[0] @ encoder.images([load_rgb(Path(result))])[0])
        for each in pairs
        for real, result in each
    ]
    compared.numbers(
        "DreamBench DINO of each pair",
        "dreambooth_metric.py",
        ours,
        [value for each in published["pairs"] for value in each],
    )
    by_subject: dict[str, list[float]] = {}
    for case, values in zip(cases, published["pairs"], strict=True):
        by_subject.setdefault(case.subject.name, []).extend(values)
    mean = next(each.value for each in measure(samples, cases, [encoder]) if each.name == "DINO")
    compared.numbers(
        "DreamBench DINO, mean",
        "dreambooth_metric.py",
        [mean],
        [float(np.mean([np.mean(v) for v in by_subject.values()]))],
    )
