"""Measures similarity of results, references and prompts, copying, diversity and the consistency of stories.

All are cosines, 0 to 1 as they are published (not times 100), means of subjects' means, with 95% intervals over
subjects. Each is named with its backbone: metrics of two backbones cannot be compared.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import astuple, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from hydra.utils import instantiate
from omegaconf import DictConfig
from torch import Tensor

from dsd_lightning.evaluation.errors import CoverageTooLow, EvaluationError
from dsd_lightning.evaluation.samples.benchmark import IMAGES, Case, Subject
from dsd_lightning.evaluation.samples.result_folder import Samples
from dsd_lightning.evaluation.scores import intervals
from dsd_lightning.evaluation.scores.formats import csv_text
from dsd_lightning.evaluation.similarity.encoders import Clip, Encoder, Pixels, are_encoded
from dsd_lightning.files.atomic import write_text
from dsd_lightning.files.listing import list_files
from dsd_lightning.images.pixels import load_rgb

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Similarity:
    """One metric of one method.

    Attributes:
        name: such as CLIP-I, with the backbone beside it.
        value, low, high: mean over subjects and bounds of its 95% interval.
        subjects: how many have a value.
        images: results that there are.
        missing: results that are not there.
        no_face, references_no_face: results and real images in which a face encoder found no face. They have no similarity,
            instead of one of 0; other encoders encode every image.
    """

    method: str
    name: str
    backbone: str
    value: float
    low: float
    high: float
    subjects: int
    images: int
    missing: int
    no_face: int = 0
    references_no_face: int = 0

    def __str__(self) -> str:
        """Return a line for people."""
        faces = f"; no face in {self.no_face} of the images and {self.references_no_face} of the real images"
        return (
            f"{self.method}  {self.name} ({self.backbone}): {self.value:.3f} {intervals.text(self.low, self.high)} "
            f"({self.subjects} subjects, {self.images} images, {self.missing} missing"
            f"{faces if self.no_face or self.references_no_face else ''})"
        )


def measure(samples: Samples, cases: Sequence[Case], encoders: Sequence[Encoder]) -> list[Similarity]:
    """Return, for each encoder, the similarity to the real images, to the prompt (CLIP), copying and diversity.

    The similarity to a subject is the mean over all pairs of a result and a real image of it (DreamBooth, arXiv 2208.12242,
    Section 4.1); benchmarks other than DreamBench have one, the reference.

    `copying` is how much more alike results are to their own reference than to the other subjects': 0 for results that
    do not depend on their reference. `diversity` is 1 minus the similarity of every two results for one subject. What an
    encoder does not encode is left out of all of them, and counted.

    Raises:
        EvaluationError: no images.
    """
    present = [(case, file) for case in cases if (file := samples.image(case)) is not None]
    missing = len(cases) - len(present)
    if not present:
        raise EvaluationError(f"{samples.folder} has none of the {len(cases)} images of the benchmark")
    subjects = list(dict.fromkeys(case.subject for case, _ in present))
    owner = torch.tensor([subjects.index(case.subject) for case, _ in present])
    result: list[Similarity] = []

    def add(encoder: Encoder, name: str, by_subject: list[float], scale: tuple[float, float]) -> None:
        low, high = intervals.of_mean(by_subject, scale)
        mean = float(np.mean(by_subject)) if by_subject else float("nan")
        sizes = len(by_subject), len(present), missing, *without
        result.append(Similarity(samples.method, name, encoder.backbone, mean, low, high, *sizes))

    for encoder in encoders:
        log.info("%s: %s (%s)", samples.method, encoder.name, encoder.backbone)
        results = encoder.images(load_rgb(file) for _, file in present)
        table, references_without = _table(results, subjects, encoder)
        encoded = are_encoded(results)
        without = int((~encoded).sum()), references_without
        own = table[torch.arange(len(present)), owner]
        add(encoder, encoder.name, _means(own, owner), intervals.COSINE)
        if isinstance(encoder, Clip):
            texts = encoder.texts(case.prompt.text for case, _ in present)
            add(encoder, "CLIP-T", _means((results * texts).sum(dim=1), owner), intervals.COSINE)
        if len(subjects) > 1:
            others = table.masked_fill(F.one_hot(owner, len(subjects)).bool(), torch.nan).nanmean(dim=1)
            add(encoder, f"copying, {encoder.name}", _means(own - others, owner), (-2.0, 2.0))
        groups = [results[(owner == index) & encoded] for index in range(len(subjects))]
        diversities = [1 - mean_of_pairs(group) for group in groups if len(group) > 1]
        add(encoder, f"diversity, {encoder.name}", diversities, (0.0, 2.0))
    return result


def _table(results: Tensor, subjects: Sequence[Subject], encoder: Encoder) -> tuple[Tensor, int]:
    """Return the mean similarity of each result to the real images of each subject, and how many of these have no encoding.

    The similarities are [results, subjects], NaN where there is none.
    """
    counts = [len(subject.real_images) for subject in subjects]
    real = encoder.images(load_rgb(file) for subject in subjects for file in subject.real_images)
    table = torch.stack([each.nanmean(dim=1) for each in (results @ real.T).split(counts, dim=1)], dim=1)
    return table, int((~are_encoded(real)).sum())


def _means(values: Tensor, owner: Tensor) -> list[float]:
    """Return the mean of each subject that has a value."""
    means = [float(values[owner == index].nanmean()) for index in owner.unique()]
    return [mean for mean in means if not math.isnan(mean)]


def mean_of_pairs(vectors: Tensor) -> float:
    """Return the mean similarity of every two of at least two unit vectors [n, d]."""
    first, second = torch.triu_indices(len(vectors), len(vectors), offset=1)
    return float((vectors @ vectors.T)[first, second].mean())


def run(config: DictConfig) -> str:
    """Measure a method's images with the encoders that the configuration names; write and return the metrics."""
    cases = instantiate(config.benchmark).cases(config.copies)
    measured = measure(Samples(config.samples, config.name), cases, encoders(config))
    share = measured[0].images / len(cases)
    if share < config.coverage:
        raise CoverageTooLow(
            f"{config.samples} has {share:.1%} of the images, and coverage={config.coverage:g} is needed"
        )
    file = Path(config.out) / f"{measured[0].method}.csv"
    write_text(file, csv_text([field.name for field in fields(Similarity)], map(astuple, measured)))
    return "\n".join([*map(str, measured), "", f"metrics  {file}"])


def encoders(config: DictConfig) -> list[Any]:
    """Return the encoders named in `config.use`, built from `config.encoders`; pixels come first.

    Raises:
        EvaluationError: an unknown name, or weights that cannot be loaded.
    """
    if unknown := [name for name in config.use if name not in config.encoders]:
        raise EvaluationError(
            f"use={list(config.use)}: {unknown[0]!r} is unknown; choose of {', '.join(config.encoders)}"
        )
    return [Pixels(), *(instantiate(config.encoders[name]) for name in config.use)]


@dataclass(frozen=True)
class Consistency:
    """How consistent the panels of a story are, by one encoder.

    Attributes:
        self_similarity: mean cosine of every two panels (ViStoryBench: self similarity).
        neighbours: mean cosine of panels that follow each other.
        cross_similarity: mean cosine of panels and references (ViStoryBench: cross similarity); NaN without any.
        panels: how many.
        no_face: of these, in how many a face encoder found no face; they are left out.
    """

    name: str
    backbone: str
    self_similarity: float
    neighbours: float
    cross_similarity: float
    panels: int
    no_face: int = 0

    def __str__(self) -> str:
        """Return a line for people."""
        return (
            f"{self.name} ({self.backbone}): self {self.self_similarity:.3f}, neighbours {self.neighbours:.3f}, "
            f"cross {self.cross_similarity:.3f} (N={self.panels}"
            f"{f'; no face in {self.no_face} panels' if self.no_face else ''})"
        )


def consistency(panels: Sequence[Path], references: Sequence[Path], encoder: Encoder) -> Consistency:
    """Return how consistent panels are with each other, and with the references.

    Raises:
        EvaluationError: fewer than two panels.
    """
    if len(panels) < 2:
        raise EvaluationError(f"{len(panels)} panels: a story has at least 2")
    vectors = encoder.images(load_rgb(file) for file in panels)
    following = float((vectors[:-1] * vectors[1:]).sum(dim=1).nanmean())
    cross = math.nan
    if references:
        cross = float((vectors @ encoder.images(load_rgb(file) for file in references).T).nanmean())
    encoded = vectors[are_encoded(vectors)]
    own = mean_of_pairs(encoded) if len(encoded) > 1 else math.nan
    without = len(panels) - len(encoded)
    return Consistency(encoder.name, encoder.backbone, own, following, cross, len(panels), without)


def story(config: DictConfig) -> str:
    """Measure the panels of a folder, in natural order of their names; return the metrics."""
    references = [Path(file) for file in config.references]
    excluded = {file.resolve() for file in references}
    files = list_files(Path(config.panels), IMAGES, recursive=False)
    panels = [file for file in files if file.resolve() not in excluded]
    return "\n".join(str(consistency(panels, references, each)) for each in encoders(config))
