"""Compares two methods by a permutation test, and refuses rows that cannot be in one table.

Methods are compared on the subjects that both have, by exchanging them subject by subject at random: if they were equally
good, an exchange would change nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from dsd_lightning.evaluation.errors import EvaluationError
from dsd_lightning.evaluation.scores import intervals
from dsd_lightning.evaluation.scores.estimates import Array, Scores, estimates_of
from dsd_lightning.randomness import numpy_generator

EXCHANGES = 10_000
"""Random exchanges of a comparison; the least p that it can give is 1 / 10,001."""

_DIFFERENCES = (-1.0, 1.0)
"""Scale of the difference of two shares."""


@dataclass(frozen=True)
class Comparison:
    """One method against another in one estimate.

    Attributes:
        estimate: such as `debiased_cp_pf`.
        first, second: methods.
        difference: first - second, over the subjects that both have.
        low, high: bounds of its 95% interval over subjects; NaN where there is none.
        p: of a two-sided permutation test that exchanges the methods subject by subject.
        subjects: how many both have.
    """

    estimate: str
    first: str
    second: str
    difference: float
    low: float
    high: float
    p: float
    subjects: int

    def __str__(self) -> str:
        """Return a line for people."""
        return (
            f"{self.estimate}: {self.first} - {self.second} = {self.difference:+.3f} "
            f"{intervals.text(self.low, self.high, '+.3f')}, p = {self.p:.4f} (permutation over {self.subjects} subjects)"
        )


def compare(
    first: Scores,
    second: Scores,
    names: Sequence[str] = ("cp_pf", "debiased_cp_pf"),
    exchanges: int = EXCHANGES,
) -> list[Comparison]:
    """Return how two methods differ, in those of the estimates `names` that both have.

    Args:
        first, second: methods.
        names: estimates.
        exchanges: random ones, from which p is computed.

    Raises:
        EvaluationError: other judges, rubrics or rules, or no common subject.
    """
    require_alike([first, second])
    common = [name for name in first.subjects if name in set(second.subjects)]
    if not common or first.kinds != second.kinds:
        raise EvaluationError(f"{first.method} and {second.method} have no subjects and prompt kinds in common")
    one, other = _restricted(first, common), _restricted(second, common)
    ones = np.ones((1, len(common)))
    weights, strata = intervals.left_out(one.categories)
    signs = numpy_generator("evaluation", "exchange").integers(0, 2, (exchanges, len(common))).astype(np.float64)
    both = _joined(one, other)
    kept, exchanged = np.concatenate([1 - signs, signs], axis=1), np.concatenate([signs, 1 - signs], axis=1)
    ours, theirs = estimates_of(one, ones), estimates_of(other, ones)
    truth = {name: value - theirs[name] for name, value in ours.items() if name in theirs}
    without, others = estimates_of(one, weights), estimates_of(other, weights)
    against = estimates_of(both, exchanged)
    chance = {name: value - against[name] for name, value in estimates_of(both, kept).items()}
    comparisons = []
    for name in names:
        if name not in truth:
            continue
        difference = float(truth[name][0])
        low, high = intervals.student(
            difference, intervals.jackknifed(without[name] - others[name], strata), _DIFFERENCES
        )
        # Differences that are equal up to rounding count as equal.
        extreme = int((np.abs(chance[name]) >= abs(difference) - 1e-12).sum())
        p = (1 + extreme) / (1 + exchanges)
        comparisons.append(Comparison(name, first.method, second.method, difference, low, high, p, len(common)))
    return comparisons


def _restricted(scores: Scores, subjects: Sequence[str]) -> Scores:
    rows = [scores.subjects.index(name) for name in subjects]
    return replace(
        scores,
        subjects=tuple(subjects),
        categories=tuple(scores.categories[row] for row in rows),
        sums={name: value[rows] for name, value in scores.sums.items()},
        counts={name: value[rows] for name, value in scores.counts.items()},
        scored={name: value[rows] for name, value in scores.scored.items()},
        missing={name: value[rows] for name, value in scores.missing.items()},
    )


def _joined(one: Scores, other: Scores) -> Scores:
    """Return both methods' subjects, one after the other, as if they were one method's."""

    def concatenated(left: Mapping[str, Array], right: Mapping[str, Array]) -> dict[str, Array]:
        return {name: np.concatenate([left[name], right[name]]) for name in left if name in right}

    return replace(
        one,
        subjects=one.subjects + other.subjects,
        categories=one.categories + other.categories,
        sums=concatenated(one.sums, other.sums),
        counts=concatenated(one.counts, other.counts),
    )


def require_alike(rows: Sequence[Scores]) -> None:
    """Refuse rows that cannot be in one table.

    Raises:
        EvaluationError: they are of different judges, providers, setups, rubrics or rules.
    """
    for name in ("judge", "rule"):
        if len(values := sorted({getattr(row, name) for row in rows})) > 1:
            raise EvaluationError(
                f"rows of different {name}s cannot be in one table or be compared: {', '.join(values)}; "
                f"score them all with one {name}"
            )
    if len(providers := sorted({row.provider for row in rows if row.provider})) > 1:
        raise EvaluationError(
            f"rows of different judges cannot be in one table or be compared: {rows[0].judge} of {' and of '.join(providers)}; "
            "score them all with one, or give a server that has moved its former name: agents.vlm.provider.identity=NAME"
        )
    if len(setups := sorted({row.setup for row in rows if row.setup})) > 1:
        raise EvaluationError(
            "rows of different protocols cannot be in one table or be compared: images and sampling were "
            f"{' and '.join(setups)}; judge them all alike"
        )
    digests: dict[tuple[str, str], str] = {}
    for row in rows:
        for measure, kind, digest in row.rubric:
            if digests.setdefault((measure, kind), digest) != digest:
                raise EvaluationError(
                    f"rows of different rubrics cannot be in one table or be compared: {measure} of {kind} subjects was "
                    f"judged by {digests[measure, kind][:12]} and by {digest[:12]}; judge them all with one folder of rubrics"
                )
