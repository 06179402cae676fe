"""Combines scores of categories and prompt kinds into overalls, by one of three rules.

DreamBench++ averages over samples; its categories have 45, 20, 65 and 20 subjects and its kinds 4, 3 and 2 prompts. The
paper's Table 1 does not keep to one rule: the overalls of its baselines are plain means of categories or kinds (those of
prompt following with the style prompts that the table leaves out), its own row and most debiased overalls are means over
samples without style. `as-published` therefore means, for a new row, what the paper did for its own.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from dsd_lightning.evaluation.errors import EvaluationError
from dsd_lightning.evaluation.samples.benchmark import STYLE

Rule = Literal["sample", "category", "as-published"]
"""How values of categories (or prompt kinds) are combined: the mean over all samples; the plain mean of the values; the
mean over samples without style subjects (concept preservation) or style prompts (prompt following)."""

SUBJECTS_OF = {"animal": 45, "human": 20, "object": 65, "style": 20}
"""DreamBench++'s subjects by category."""

PROMPTS_OF = {"photorealistic": 4, "style": 3, "imaginative": 2}
"""DreamBench++'s prompts of a subject by kind."""

Values = NDArray[np.float64]


def require_rule(rule: str) -> Rule:
    """Return `rule`.

    Raises:
        EvaluationError: it is none of the rules.
    """
    if rule not in get_args(Rule):
        raise EvaluationError(f"rule={rule!r} is unknown; choose one of {', '.join(get_args(Rule))}")
    return rule  # type: ignore[return-value]


@dataclass(frozen=True)
class Totals:
    """Sums of scores in [0, 1] and their numbers, by group (a category or a prompt kind).

    All are arrays of one shape, which the values computed from them have too, so that a jackknife is one call.
    """

    sums: Mapping[str, Values]
    counts: Mapping[str, Values]


def mean_of(totals: Totals, group: str) -> Values:
    """Return the mean score of a group, NaN where it has none."""
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(totals.sums[group] / totals.counts[group])


def overall(totals: Totals, rule: Rule) -> Values:
    """Return the mean over all groups by a rule; groups without any score do not count, NaN where none has one."""
    groups = [name for name in totals.sums if not (rule == "as-published" and name == STYLE)]
    # A benchmark without categories, or of style alone, has nothing to leave out.
    groups = groups or list(totals.sums)
    with np.errstate(invalid="ignore", divide="ignore"):
        if rule == "category":
            means = np.stack([mean_of(totals, name) for name in groups])
            scored = ~np.isnan(means)
            return np.asarray(np.where(scored, means, 0).sum(axis=0) / scored.sum(axis=0))
        total = np.sum([totals.sums[name] for name in groups], axis=0)
        return np.asarray(total / np.sum([totals.counts[name] for name in groups], axis=0))


def overall_of_values(values: Mapping[str, float], weights: Mapping[str, int], rule: Rule) -> float:
    """Return the overall of a published table's values by category or kind.

    Args:
        values: of each group that the table prints, in [0, 1].
        weights: samples of each group, such as `SUBJECTS_OF`.
        rule: see `Rule`.
    """
    counts = {name: np.asarray(float(weights[name])) for name in values}
    sums = {name: np.asarray(value * weights[name]) for name, value in values.items()}
    return float(overall(Totals(sums, counts), rule))
