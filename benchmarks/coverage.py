"""Measures how often 95% intervals hold the true value, and whether p-values are uniform if methods are equally good.

python -m benchmarks.coverage --trials 2000

Subjects and raters differ by a normal effect on the score's logit, and every score is binomial (0 to 4) around its
subject's. The truth is the mean over 200,000 subjects. `p < 0.05` is the share of comparisons of equally good methods that
call the difference significant.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from dsd_lightning.evaluation.scores import comparison
from dsd_lightning.evaluation.scores.estimates import Scores, estimates
from dsd_lightning.evaluation.user_study.ratings import Rating, opinions
from dsd_lightning.randomness import numpy_generator

SIZES = {5: 1, 12: 4, 16: 4, 30: 4, 150: 4}
"""Subjects, and the categories they are divided into; of 16, each category has 4."""

CATEGORY_SHIFTS = (-0.8, -0.2, 0.4, 1.0)
SPREAD = 1.0
PROMPTS = 9
RATERS, ITEMS = 3, 30


def draw(rng: np.random.Generator, shift: float, count: int) -> NDArray[np.float64]:
    """Return subjects' true scores in [0, 1]."""
    return 1 / (1 + np.exp(-(shift + SPREAD * rng.standard_normal(count))))


def scores_of(rng: np.random.Generator, subjects: int, categories: int, name: str = "one") -> Scores:
    """Return a method's scores of a benchmark of `subjects`."""
    names = tuple(f"c{index * categories // subjects}" for index in range(subjects))
    measures = ("cp", "pf")
    sums = {}
    for measure in measures:
        truth = np.concatenate([draw(rng, CATEGORY_SHIFTS[int(each[1:])], 1) for each in names])
        sums[measure] = rng.binomial(4 * PROMPTS, truth)[:, None] / 4
    full = np.full((subjects, 1), PROMPTS)
    return Scores(
        name,
        "judge",
        (),
        "sample",
        tuple(map(str, range(subjects))),
        names,
        ("prompt",),
        sums,
        {each: full.astype(np.float64) for each in measures},
        dict.fromkeys(measures, full),
        dict.fromkeys(measures, 0 * full),
        {},
    )


def truths() -> list[float]:
    """Return the true mean score of each category."""
    rng = numpy_generator("coverage", "truth")
    return [float(draw(rng, shift, 200_000).mean()) for shift in CATEGORY_SHIFTS]


def covered(subjects: int, categories: int, trials: int) -> dict[str, float]:
    """Return the share of intervals that hold the truth, by estimate."""
    rng = numpy_generator("coverage", subjects)
    by_category = truths()
    counts = np.bincount([index * categories // subjects for index in range(subjects)])
    overall = float(np.average(by_category[:categories], weights=counts))
    truth = {"cp": overall, "cp_pf": overall**2, **{f"cp/c{i}": by_category[i] for i in range(categories)}}
    hits = dict.fromkeys(truth, 0)
    for _ in range(trials):
        found = estimates(scores_of(rng, subjects, categories))
        for name, value in truth.items():
            hits[name] += found[name].low <= value <= found[name].high
    return {name: hit / trials for name, hit in hits.items()}


def significant(subjects: int, categories: int, trials: int) -> Sequence[float]:
    """Return the shares of p-values below 0.05, 0.25 and 0.5 between equally good methods."""
    rng = numpy_generator("significance", subjects)
    values = []
    for _ in range(trials):
        one, other = (scores_of(rng, subjects, categories, name) for name in ("one", "other"))
        values.append(comparison.compare(one, other, ("cp_pf",))[0].p)
    return [float(np.mean(np.asarray(values) < level)) for level in (0.05, 0.25, 0.5)]


def covered_by_raters(trials: int) -> float:
    """Return the share of a user study's intervals that hold the true mean rating."""
    rng = numpy_generator("coverage", "raters")
    hits = 0
    for _ in range(trials):
        rater, item = 0.4 * rng.standard_normal((RATERS, 1)), 0.6 * rng.standard_normal((1, ITEMS))
        values = 3 + rater + item + 0.5 * rng.standard_normal((RATERS, ITEMS))
        ratings = [
            Rating(str(row), str(column), "m", "c", float(value)) for (row, column), value in np.ndenumerate(values)
        ]
        (found,) = opinions(ratings)
        hits += found.low <= 3 <= found.high
    return hits / trials


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.coverage", description=__doc__)
    parser.add_argument("--trials", type=int, default=2000)
    trials = parser.parse_args().trials
    for subjects, categories in SIZES.items():
        shares = ", ".join(f"{name} {share:.3f}" for name, share in covered(subjects, categories, trials).items())
        sys.stdout.write(f"{subjects} subjects in {categories} categories: {shares}\n")
    sys.stdout.write(f"{RATERS} raters, {ITEMS} images: {covered_by_raters(trials // 4):.3f}\n")
    for subjects, categories in SIZES.items():
        levels = ", ".join(f"{share:.3f}" for share in significant(subjects, categories, trials // 4))
        sys.stdout.write(f"{subjects} subjects, share of p < 0.05, 0.25, 0.5: {levels}\n")


if __name__ == "__main__":
    main()
