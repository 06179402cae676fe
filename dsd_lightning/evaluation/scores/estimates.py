"""Estimates a method's scores, with intervals, from judgements.

Every estimate is a share: scores of 0 to 4 divided by 4, the mean over a sample's repeats first. Intervals are over
subjects, within each category, since prompts of one subject are not independent of each other.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dsd_lightning.evaluation.errors import CoverageTooLow, EvaluationError
from dsd_lightning.evaluation.judging.judgements import Judgement, failures, remedy
from dsd_lightning.evaluation.judging.replies import HIGHEST
from dsd_lightning.evaluation.scores import intervals
from dsd_lightning.evaluation.scores.aggregate import Rule, Totals, mean_of, overall

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Estimate:
    """A mean score with its interval.

    Attributes:
        value: in [0, 1]; NaN where nothing was scored.
        low, high: bounds of the 95% interval; NaN where there is none (one subject, or all alike).
        subjects, images: how many have a score; of a product, by the measure that has fewer.
        scored: judgements with a score.
        missing: judgements without one.
    """

    value: float
    low: float
    high: float
    subjects: int
    images: int
    scored: int
    missing: int

    def __str__(self) -> str:
        """Return value, interval and counts for people."""
        return f"{self.value:.3f} {intervals.text(self.low, self.high)} ({', '.join(self.sizes)})"

    @property
    def sizes(self) -> tuple[str, ...]:
        """Return how many subjects, images and judgements the estimate has, and how many judgements are missing."""
        return (
            f"{self.subjects} subjects",
            f"{self.images} images",
            f"{self.scored} judged",
            f"{self.missing} missing",
        )


@dataclass(frozen=True)
class Scores:
    """One method's judgements, summed by subject and prompt kind.

    Attributes:
        method: whose images.
        judge: the served model.
        rubric: hashes of the rubrics by measure and category.
        rule: how estimates become overalls.
        subjects: names, sorted; the first axis of all arrays.
        categories: of each subject.
        kinds: of prompts; the second axis.
        sums, counts: by measure: summed scores in [0, 1] of samples, and how many [subjects, kinds].
        scored, missing: by measure: judgements with and without a score [subjects, kinds].
        failures: judgements without a score by kind.
        setup: how images were sent and answers sampled; empty where the record does not say.
        provider: whose model was asked, such as `openai@api.openai.com`; models of one name on two servers may be two models.
    """

    method: str
    judge: str
    rubric: tuple[tuple[str, str, str], ...]
    rule: Rule
    subjects: tuple[str, ...]
    categories: tuple[str, ...]
    kinds: tuple[str, ...]
    sums: Mapping[str, Array]
    counts: Mapping[str, Array]
    scored: Mapping[str, NDArray[np.int64]]
    missing: Mapping[str, NDArray[np.int64]]
    failures: Mapping[str, int]
    setup: str = ""
    provider: str = ""

    @property
    def coverage(self) -> dict[str, float]:
        """Return the share of judgements with a score by measure."""
        return {
            name: float(self.scored[name].sum() / max(1, (self.scored[name] + self.missing[name]).sum()))
            for name in self.scored
        }

    def require_coverage(self, least: float) -> None:
        """Refuse estimates from too few judgements.

        Raises:
            CoverageTooLow: naming measure, share and failures.
        """
        for measure, share in self.coverage.items():
            if share < least:
                kinds = ", ".join(f"{kind} {count}" for kind, count in self.failures.items())
                raise CoverageTooLow(
                    f"{self.method}, {measure}: {share:.1%} of the judgements have a score, and coverage={least:g} is "
                    f"needed; without one: {kinds}. No table is written; {remedy(self.failures)}"
                )


def collect(judgements: Iterable[Judgement], rule: Rule) -> Scores:
    """Return the scores of one method.

    Raises:
        EvaluationError: no judgements, or of several methods, judges, providers, rubrics or setups.
    """
    # In the order of the questions, so that sums round alike whatever the order of the lines.
    ordered = sorted(judgements, key=lambda each: (each.subject, each.prompt, each.copy, each.measure, each.repeat))
    if not ordered:
        raise EvaluationError("there are no judgements")
    methods = sorted({each.method for each in ordered})
    judges = sorted({each.served for each in ordered if each.served})
    if len(methods) > 1 or len(judges) > 1:
        raise EvaluationError(
            f"judgements of methods {', '.join(methods)} by judges {', '.join(judges)} cannot be one row: "
            "a row is of one method and one judge"
        )
    providers = sorted({each.provider for each in ordered})
    if len(providers) > 1:
        raise EvaluationError(
            f"{methods[0]} was judged by models of {' and '.join(providers)}, which cannot be one row: run the command that "
            "judged it again, to its end"
        )
    rubrics = {(each.measure, _rubric_kind(each), each.rubric) for each in ordered}
    if len({(measure, kind) for measure, kind, _ in rubrics}) < len(rubrics):
        raise EvaluationError(f"{methods[0]} was judged by several rubrics; judge all of it with one folder of rubrics")
    setups = sorted({each.setup for each in ordered})
    if len(setups) > 1:
        raise EvaluationError(
            f"{methods[0]} was judged by several setups, {' and '.join(each or 'an unrecorded one' for each in setups[:2])}: "
            "run the command that judged it again, to its end, with one protocol and sampling"
        )
    category = {each.subject: each.category for each in ordered}
    subjects = tuple(sorted(category))
    kinds = tuple(dict.fromkeys(each.kind for each in sorted(ordered, key=lambda each: each.prompt)))
    measures = tuple(dict.fromkeys(sorted((each.measure for each in ordered), key=_order)))
    shape = (len(subjects), len(kinds))
    sums, counts = ({name: np.zeros(shape) for name in measures} for _ in range(2))
    scored, missing = ({name: np.zeros(shape, dtype=np.int64) for name in measures} for _ in range(2))
    place = {name: index for index, name in enumerate(subjects)}
    samples: dict[tuple[str, str, str, int, int], list[int]] = {}
    for each in ordered:
        cell = place[each.subject], kinds.index(each.kind)
        if each.score is None:
            missing[each.measure][cell] += 1
            continue
        scored[each.measure][cell] += 1
        samples.setdefault((each.measure, each.subject, each.kind, each.prompt, each.copy), []).append(each.score)
    for (measure, subject, kind, *_), values in samples.items():
        cell = place[subject], kinds.index(kind)
        sums[measure][cell] += sum(values) / len(values) / HIGHEST
        counts[measure][cell] += 1
    return Scores(
        method=methods[0],
        judge=judges[0] if judges else ordered[0].judge,
        rubric=tuple(sorted(rubrics)),
        rule=rule,
        subjects=subjects,
        categories=tuple(category[name] for name in subjects),
        kinds=kinds,
        sums=sums,
        counts=counts,
        scored=scored,
        missing=missing,
        failures=failures(ordered),
        setup=setups[0],
        provider=providers[0],
    )


def _order(measure: str) -> tuple[bool, str]:
    return measure.startswith("debiased"), measure


def _rubric_kind(judgement: Judgement) -> str:
    return "style" if judgement.category == "style" and judgement.measure.endswith("cp") else "subject"


def estimates(scores: Scores) -> dict[str, Estimate]:
    """Return every estimate by name: `cp`, `cp/animal`, `pf/imaginative`, `cp_pf`, `debiased_cp_pf` and so on."""
    ones = np.ones((1, len(scores.subjects)))
    values = estimates_of(scores, ones)
    weights, strata = intervals.left_out(scores.categories)
    without = estimates_of(scores, weights)
    result = {}
    for name, value in values.items():
        parts = intervals.jackknifed(without[name], strata)
        low, high = intervals.student(float(value[0]), parts, intervals.SHARE)
        result[name] = Estimate(float(value[0]), low, high, *_sizes(scores, name))
    return result


def estimates_of(scores: Scores, weights: Array) -> dict[str, Array]:
    """Return all estimates for each row of weights [draws, subjects]."""
    result: dict[str, Array] = {}
    for measure in scores.sums:
        sums, counts = scores.sums[measure], scores.counts[measure]
        if measure.endswith("cp"):
            totals = _by_category(scores.categories, sums.sum(axis=1), counts.sum(axis=1), weights)
        else:
            totals = Totals(
                {kind: weights @ sums[:, index] for index, kind in enumerate(scores.kinds)},
                {kind: weights @ counts[:, index] for index, kind in enumerate(scores.kinds)},
            )
        for group in totals.sums:
            result[f"{measure}/{group}"] = mean_of(totals, group)
        result[measure] = overall(totals, scores.rule)
    for prefix in ("", "debiased_"):
        if f"{prefix}cp" in result and f"{prefix}pf" in result:
            result[f"{prefix}cp_pf"] = result[f"{prefix}cp"] * result[f"{prefix}pf"]
    return result


def _by_category(categories: Sequence[str], sums: Array, counts: Array, weights: Array) -> Totals:
    members = {name: np.asarray([each == name for each in categories]) for name in dict.fromkeys(sorted(categories))}
    return Totals(
        {name: weights[:, chosen] @ sums[chosen] for name, chosen in members.items()},
        {name: weights[:, chosen] @ counts[chosen] for name, chosen in members.items()},
    )


def _sizes(scores: Scores, name: str) -> tuple[int, int, int, int]:
    """Return how many subjects, images and judgements an estimate has, and how many judgements are missing."""
    if name.endswith("cp_pf"):
        one, other = _sizes(scores, name.removesuffix("_pf")), _sizes(scores, name.removesuffix("cp_pf") + "pf")
        return min(one[0], other[0]), min(one[1], other[1]), one[2] + other[2], one[3] + other[3]
    measure, _, group = name.partition("/")
    here = np.ones(scores.scored[measure].shape, dtype=bool)
    if measure.endswith("cp"):
        rows = np.asarray([_counts_in(each, group, scores, by_kind=False) for each in scores.categories])
        here &= rows[:, None]
    else:
        here &= np.asarray([_counts_in(each, group, scores, by_kind=True) for each in scores.kinds])[None]
    images = np.where(here, scores.counts[measure], 0)
    scored, missing = (int(each[measure][here].sum()) for each in (scores.scored, scores.missing))
    return int((images.sum(axis=1) > 0).sum()), int(images.sum()), scored, missing


def _counts_in(name: str, group: str, scores: Scores, by_kind: bool) -> bool:
    if group:
        return name == group
    others = set(scores.kinds if by_kind else scores.categories) - {"style"}
    return not (scores.rule == "as-published" and name == "style" and others)
