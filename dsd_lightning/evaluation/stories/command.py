"""Runs `python evaluate.py benchmark=vistorybench`: generates shots, has them judged, measures style and characters."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra.utils import instantiate
from omegaconf import DictConfig

from dsd_lightning.evaluation.errors import CoverageTooLow, EvaluationError
from dsd_lightning.evaluation.judging.judgements import Record, failures, remedy
from dsd_lightning.evaluation.samples.generate import make
from dsd_lightning.evaluation.scores.formats import to_html, to_latex, to_markdown, to_text
from dsd_lightning.evaluation.similarity.arcface import ArcFace
from dsd_lightning.evaluation.similarity.encoders import Encoder, Pixels
from dsd_lightning.evaluation.stories.alignment import (
    SINGLE,
    AlignmentJudging,
    AlignmentRubrics,
    Cutouts,
    SingleActionJudging,
    dimensions_of,
)
from dsd_lightning.evaluation.stories.characters import Detector, FaceCounts, cast_of, scores_of
from dsd_lightning.evaluation.stories.comparison import compare, require_alike
from dsd_lightning.evaluation.stories.dataset import StoryBenchmark
from dsd_lightning.evaluation.stories.outputs import StoryImages
from dsd_lightning.evaluation.stories.report import Metric, StoryScores, alignment, failure_note, table_of, to_csv
from dsd_lightning.evaluation.stories.style import style_of
from dsd_lightning.files.atomic import write_text

_PIXELS = "pixels"


def score_stories(config: DictConfig, benchmark: StoryBenchmark) -> str:
    """Generate a method's shots, judge and measure them, write its tables; return the table for the terminal.

    Raises:
        EvaluationError: a setting that stories do not have, no such folder of images, or an unknown encoder.
        CoverageTooLow: too few images or scores for `coverage`.
    """
    if config.rubrics is not None or config.wandb is not None:
        raise EvaluationError(
            f"rubrics={config.rubrics}, wandb={config.wandb}: stories have rubrics of their own (story.rubrics=FOLDER), asked "
            "with protocol=ours or protocol=vistorybench, and their tables are not sent to W&B; leave both null"
        )
    settings = config.story
    style, identity = _encoder(config, "style"), _encoder(config, "identity")
    detector: Detector | None = instantiate(config.detector)
    faces = _faces(config, style, identity)
    single = settings.single_character_action
    if single and not (settings.alignment and detector is not None and identity is not None):
        raise EvaluationError(
            "story.single_character_action=true: characters are judged one by one where they were found; it needs "
            "story.alignment=true, a detector (detector=grounding_dino) and an encoder (story.identity=clip)"
        )
    dimensions = dimensions_of(config.protocol.measures)
    rubrics = AlignmentRubrics.read(settings.rubrics, (*dimensions, SINGLE) if single else dimensions)
    protocol = instantiate(config.protocol, measures=dimensions)
    samples = StoryImages(config.method.samples, config.method.name)
    cases = benchmark.cases(config.copies)
    if config.method.maker is not None:
        maker = instantiate(config.method.maker)
        make(maker, samples, cases, config.seed, config.method.batch_size, instantiate(config.part))
    elif not samples.folder.is_dir():
        raise EvaluationError(f"method.samples={samples.folder}: there is no such folder")
    if not config.judging:
        return f"images  {samples.folder}"
    present = sum(samples.image(case) is not None for case in cases)
    _require(config.coverage, present, len(cases), samples.method, "shots have an image")
    out = Path(config.out)
    cutouts = Cutouts(out / "characters" / samples.method, samples.method, benchmark) if single else None
    tools = Tools(style, identity, faces, detector)
    metrics, setup, notes = _measured(benchmark, samples, tools, len(cases) - present, cutouts)
    judge = "none"
    if settings.alignment:
        record = Record(out / "judgements" / f"{samples.method}.jsonl")
        with instantiate(config.judge) as agent:
            judging = AlignmentJudging(agent, rubrics, protocol, record, config.retry, benchmark)
            judgements = judging.run(samples, cases, config.estimate)
            if cutouts is not None:
                record = Record(out / "judgements" / f"{samples.method}.characters.jsonl")
                closer = SingleActionJudging(agent, rubrics, protocol, record, config.retry, benchmark)
                judgements += closer.run(cutouts, cutouts.cases, config.estimate)
        scored = sum(each.score is not None for each in judgements)
        again = remedy(failures(judgements))
        _require(config.coverage, scored, len(judgements), samples.method, "judgements have a score", again)
        metrics |= alignment(judgements)
        notes += failure_note(judgements)
        judge = next((each.served for each in judgements if each.served), judgements[0].judge)
        digests = "".join(sorted({each.rubric for each in judgements}))
        asked = {"provider": judgements[0].provider, "protocol": judging.setup}
        setup |= {"rubrics": hashlib.sha256(digests.encode()).hexdigest()[:12], **asked}
    row = StoryScores(samples.method, judge, metrics, setup, notes)
    row.write(out / "scores" / f"{row.method}.json")
    return _written([row], benchmark.name, out / "tables", row.method)


def table(config: DictConfig) -> str:
    """Make one table of several methods' `scores/METHOD.json`, and compare each with the first; return it for the terminal.

    Raises:
        EvaluationError: a file that is not there or another one, or rows that were not measured alike.
    """
    rows = [StoryScores.read(Path(file)) for file in config.rows]
    require_alike(rows)
    return _written(rows, "ViStoryBench", Path(config.out), config.name)


@dataclass(frozen=True)
class Tools:
    """What images are measured with; None measures nothing by it.

    Attributes:
        style, identity, faces: encoders of shots, of characters, and of those that are realistic people.
        detector: of characters.
    """

    style: Encoder | None
    identity: Encoder | None
    faces: Encoder | None
    detector: Detector | None

    @property
    def setup(self) -> dict[str, str]:
        """Return their names, by which rows of one table are alike."""
        setup = {"style": f"{self.style.name} ({self.style.backbone})"} if self.style is not None else {}
        if self.detector is not None:
            setup["characters"] = self.detector.name
            for what, encoder in (("CIDS", self.identity), ("faces", self.faces)):
                setup |= {what: f"{encoder.name} ({encoder.backbone})"} if encoder is not None else {}
        return setup


def _measured(
    benchmark: StoryBenchmark, samples: StoryImages, tools: Tools, missing: int, cutouts: Cutouts | None
) -> tuple[dict[str, Metric], dict[str, str], tuple[str, ...]]:
    """Return the metrics that need no judge, with what they were measured, and notes; write the characters that were found."""
    by_metric: dict[str, dict[str, float]] = {}
    shots, counts = 0, FaceCounts()
    for story in benchmark.stories:
        images = samples.shots(story.name)
        shots += sum(shot.index in images for shot in story.shots)
        values: dict[str, float] = {}
        if tools.style is not None:
            values["style_self"], values["style_cross"] = style_of(story, images, tools.style)
        if tools.detector is not None:
            cast = cast_of(story, images, tools.detector, tools.identity, tools.faces)
            scores = scores_of(cast)
            counts += cast.faces
            values["occm"] = scores.occm
            if cutouts is not None:
                cutouts.add(story.name, cast.cutouts)
            if tools.identity is not None:
                values |= {"cids_self": scores.own, "cids_cross": scores.cross, "copy_paste": scores.copied}
        for name, value in values.items():
            by_metric.setdefault(name, {})[story.name] = value
    notes = (str(counts),) if tools.faces is not None else ()
    return {name: Metric(values, shots, missing) for name, values in by_metric.items()}, tools.setup, notes


def _faces(config: DictConfig, style: Encoder | None, identity: Encoder | None) -> Any:
    """Return the encoder of realistic people that `story.faces` names, or None for null.

    Raises:
        EvaluationError: it is none of faces, there is nothing that finds characters, or all else is compared by faces.
    """
    faces = _encoder(config, "faces")
    for use, encoder in (("style", style), ("identity", identity)):
        if isinstance(encoder, ArcFace):
            raise EvaluationError(
                f"story.{use}={config.story[use]}: faces are for realistic people alone: story.faces=arcface"
            )
    if faces is not None and not isinstance(faces, ArcFace):
        raise EvaluationError(f"story.faces={config.story.faces}: an encoder of faces is needed: arcface, or null")
    if faces is not None and (config.detector is None or config.story.identity is None):
        raise EvaluationError(
            f"story.faces={config.story.faces}: faces are those of characters that a detector finds; it needs one "
            "(detector=grounding_dino) and an encoder of the other characters (story.identity=clip)"
        )
    return faces


def _encoder(config: DictConfig, use: str) -> Any:
    """Return the encoder that `story.USE` names, or None for null."""
    name = config.story[use]
    if name is None:
        return None
    if name == _PIXELS:
        return Pixels()
    if name not in config.encoders:
        raise EvaluationError(f"story.{use}={name}: choose {_PIXELS}, {', '.join(config.encoders)}, or null")
    return instantiate(config.encoders[name])


def _require(coverage: float, there: int, wanted: int, method: str, what: str, again: str = remedy(())) -> None:
    if there < coverage * wanted:
        raise CoverageTooLow(
            f"{method}: {there} of {wanted} {what}, and coverage={coverage:g} is needed. No table is written; {again}"
        )


def _written(rows: Sequence[StoryScores], title: str, folder: Path, name: str) -> str:
    layout = table_of(rows, title)
    compared = [str(each) for row in rows[1:] for each in compare(rows[0], row)]
    text = "Paired comparisons:\n" + "\n".join(compared) + "\n" if compared else ""
    contents = {
        "txt": to_text([layout]) + ("\n" + text if text else ""),
        "csv": to_csv(rows),
        "md": to_markdown([layout]) + ("\n" + text.replace("\n", "\n\n") if text else ""),
        "tex": to_latex([layout]),
        "html": to_html([layout]),
    }
    for ending, content in contents.items():
        write_text(folder / f"{name}.{ending}", content)
    return f"{contents['txt']}\ntables  {folder / name}.{{{','.join(contents)}}}"
