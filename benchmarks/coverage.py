"""Measures how often 95% intervals hold the true value, and whether p-values are uniform if methods are equally good.

python -m benchmarks.coverage --trials 2000

Subjects differ by a normal effect on the score's logit, and every score is binomial (0 to 4) around its subject's. Raters and
images differ by normal effects on the rating, which is rounded to 1 to 5. The truth is the mean over 200,000 subjects or
ratings. Coverage is that of the intervals that are printed; the share without one is printed beside it. `p < 0.05` is the
share of comparisons of equally good methods that call the difference significant.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dsd_lightning.evaluation.scores import comparison
from dsd_lightning.evaluation.scores.estimates import Scores, estimates
from dsd_lightning.evaluation.user_study.rating import Rating
from dsd_lightning.evaluation.user_study.ratings import opinions
from dsd_lightning.randomness import numpy_generator

SIZES = {5: 1, 12: 4, 16: 4, 30: 4, 150: 4}
"""Subjects, and the categories they are divided into; of 16, each category has 4."""

CATEGORY_SHIFTS = (-0.8, -0.2, 0.4, 1.0)
SPREAD = 1.0
PROMPTS = 9
RATERS, ITEMS = (2, 3, 5, 10), 30
RATING_MEANS, RATING_SCALE = (3.0, 4.2), (1.0, 5.0)
"""Of ratings before they are rounded; the second is close to the scale's end."""
EXCHANGES = 1000
"""Of a comparison, fewer than by default, so that there can be more comparisons."""


@dataclass(frozen=True)
class Coverage:
    """Attributes: share of printed intervals that hold the truth; share of trials without an interval."""

    covered: float
    without: float

    def __str__(self) -> str:
        """Return both for people."""
        return f"{self.covered:.3f}" + (f" ({self.without:.1%} without)" if self.without else "")


def coverage_of(bounds: Sequence[tuple[float, float]], truth: float) -> Coverage:
    """Return how often intervals (NaN for none) hold the truth."""
    printed = [(low, high) for low, high in bounds if not math.isnan(low)]
    hits = sum(low <= truth <= high for low, high in printed)
    return Coverage(hits / max(1, len(printed)), 1 - len(printed) / len(bounds))


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


def covered(subjects: int, categories: int, trials: int) -> dict[str, Coverage]:
    """Return how often intervals hold the truth, by estimate."""
    rng = numpy_generator("coverage", subjects)
    by_category = truths()
    counts = np.bincount([index * categories // subjects for index in range(subjects)])
    overall = float(np.average(by_category[:categories], weights=counts))
    truth = {"cp": overall, "cp_pf": overall**2, **{f"cp/c{i}": by_category[i] for i in range(categories)}}
    found = [estimates(scores_of(rng, subjects, categories)) for _ in range(trials)]
    return {name: coverage_of([(each[name].low, each[name].high) for each in found], truth[name]) for name in truth}


def significant(subjects: int, categories: int, trials: int) -> Sequence[float]:
    """Return the shares of p-values below 0.05, 0.25 and 0.5 between equally good methods."""
    rng = numpy_generator("significance", subjects)
    values = []
    for _ in range(trials):
        one, other = (scores_of(rng, subjects, categories, name) for name in ("one", "other"))
        values.append(comparison.compare(one, other, ("cp_pf",), EXCHANGES)[0].p)
    return [float(np.mean(np.asarray(values) < level)) for level in (0.05, 0.25, 0.5)]


def rated(rng: np.random.Generator, mean: float, raters: int, items: int) -> NDArray[np.float64]:
    """Return ratings [raters, items]."""
    rater, item = 0.4 * rng.standard_normal((raters, 1)), 0.6 * rng.standard_normal((1, items))
    values = mean + rater + item + 0.5 * rng.standard_normal((raters, items))
    return np.clip(np.round(values), *RATING_SCALE)


def covered_by_raters(raters: int, mean: float, trials: int) -> Coverage:
    """Return how often a user study's intervals hold the true mean rating."""
    rng = numpy_generator("coverage", "raters", raters, mean)
    spread = math.sqrt(0.4**2 + 0.6**2 + 0.5**2)
    truth = float(np.clip(np.round(mean + spread * rng.standard_normal(200_000)), *RATING_SCALE).mean())
    bounds = []
    for _ in range(trials):
        values = np.ndenumerate(rated(rng, mean, raters, ITEMS))
        ratings = [Rating(str(row), str(column), "m", "c", float(value)) for (row, column), value in values]
        (found,) = opinions(ratings, RATING_SCALE)
        bounds.append((found.low, found.high))
    return coverage_of(bounds, truth)


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.coverage", description=__doc__)
    parser.add_argument("--trials", type=int, default=2000)
    trials = parser.parse_args().trials
    for subjects, categories in SIZES.items():
        shares = ", ".join(f"{name} {share}" for name, share in covered(subjects, categories, trials).items())
        sys.stdout.write(f"{subjects} subjects in {categories} categories: {shares}\n")
    for raters in RATERS:
        shares = ", ".join(f"mean {mean} {covered_by_raters(raters, mean, trials // 4)}" for mean in RATING_MEANS)
        sys.stdout.write(f"{raters} raters, {ITEMS} images: {shares}\n")
    for subjects, categories in SIZES.items():
        levels = ", ".join(f"{share:.3f}" for share in significant(subjects, categories, trials))
        sys.stdout.write(f"{subjects} subjects, share of p < 0.05, 0.25, 0.5: {levels}\n")


if __name__ == "__main__":
    main()
