"""Measures how often 95% intervals hold the true value, and whether p-values are uniform if methods are equally good.

python -m benchmarks.coverage --trials 4000 [--out benchmarks/results/coverage.json]

Subjects differ by a normal effect on the score's logit, and every score is binomial (0 to 4) around its subject's. Raters and
images differ by normal effects on the rating, which is rounded to 1 to 5. The truth is the mean over 200,000 subjects or
ratings. Coverage is that of the intervals that are printed; the share without one is printed beside it. `p < 0.05` is the
share of comparisons of equally good methods that call the difference significant; the intervals of the same differences should
hold 0. Stories' means have no categories, and are those of values on the scale of cosines. Exits with 1 below `LEAST`.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.measure import facts, write
from dsd_lightning.evaluation.scores import comparison, intervals
from dsd_lightning.evaluation.scores.estimates import Scores, estimates
from dsd_lightning.evaluation.user_study.rating import Rating
from dsd_lightning.evaluation.user_study.ratings import opinions
from dsd_lightning.randomness import numpy_generator

SIZES = {5: 1, 12: 4, 16: 4, 30: 4, 150: 4}
"""Subjects, and the categories they are divided into; of 16, each category has 4."""

CATEGORY_SHIFTS = (-0.8, -0.2, 0.4, 1.0)
LEAST = {5: 0.93, 12: 0.93, 16: 0.93, 30: 0.94, 150: 0.94}
"""Coverage that intervals over so many subjects, and all parts of them, must have."""

STORIES = (5, 20, 80)
SPREAD = 1.0
PROMPTS = 9
RATERS, ITEMS = (2, 3, 5, 10), 30
RATING_MEANS, RATING_SCALE = (3.0, 4.2), (1.0, 5.0)
"""Of ratings before they are rounded; the second is close to the scale's end."""
LEVELS = (0.05, 0.25, 0.5)
"""Of p, for the shares below them."""
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
    trial_estimates = [estimates(scores_of(rng, subjects, categories)) for _ in range(trials)]
    return {
        name: coverage_of([(each[name].low, each[name].high) for each in trial_estimates], truth[name])
        for name in truth
    }


@dataclass(frozen=True)
class Null:
    """Comparisons of equally good methods.

    Attributes:
        shares: of p-values below `LEVELS`.
        difference: how often the interval of the difference holds 0.
    """

    shares: Sequence[float]
    difference: Coverage

    def __str__(self) -> str:
        """Return both for people."""
        levels = ", ".join(f"{level:g}" for level in LEVELS)
        return (
            f"share of p < {levels}: {', '.join(f'{each:.3f}' for each in self.shares)}; difference {self.difference}"
        )


def significant(subjects: int, categories: int, trials: int) -> Null:
    """Return how p-values of the product, and intervals of its difference, are between equally good methods."""
    rng = numpy_generator("significance", subjects)
    comparisons = []
    for _ in range(trials):
        one, other = (scores_of(rng, subjects, categories, name) for name in ("one", "other"))
        comparisons += comparison.compare(one, other, ("cp_pf",), EXCHANGES)
    values = np.asarray([each.p for each in comparisons])
    difference = coverage_of([(each.low, each.high) for each in comparisons], 0.0)
    return Null([float(np.mean(values < level)) for level in LEVELS], difference)


def covered_by_stories(stories: int, trials: int) -> Coverage:
    """Return how often the interval of a mean cosine over stories holds the true one."""
    rng = numpy_generator("coverage", "stories", stories)
    cosines = 2 * draw(rng, CATEGORY_SHIFTS[-1], 200_000 + trials * stories) - 1
    truth, samples = float(cosines[:200_000].mean()), cosines[200_000:].reshape(trials, stories)
    return coverage_of([intervals.of_mean(each, intervals.COSINE) for each in samples], truth)


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
        (opinion,) = opinions(ratings, RATING_SCALE)
        bounds.append((opinion.low, opinion.high))
    return coverage_of(bounds, truth)


def too_low(subjects: Mapping[int, Mapping[str, Coverage]]) -> list[str]:
    """Return what is covered less often than `LEAST`, by number of subjects and name, for people."""
    return [
        f"{count} subjects, {name}: {share} < {LEAST[count]}"
        for count, shares in subjects.items()
        for name, share in shares.items()
        if share.covered < LEAST[count]
    ]


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the tables, and write them if asked to; return 1 if an interval is too narrow."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.coverage", description=__doc__)
    parser.add_argument("--trials", type=int, default=4000)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args(arguments)
    subjects, null = {}, {}
    for count, categories in SIZES.items():
        subjects[count] = covered(count, categories, args.trials)
        shares = ", ".join(f"{name} {share}" for name, share in subjects[count].items())
        sys.stdout.write(f"{count} subjects in {categories} categories: {shares}\n")
    studies = args.trials // 4
    raters = {each: {mean: covered_by_raters(each, mean, studies) for mean in RATING_MEANS} for each in RATERS}
    for count, by_mean in raters.items():
        shares = ", ".join(f"mean {mean} {share}" for mean, share in by_mean.items())
        sys.stdout.write(f"{count} raters, {ITEMS} images: {shares}\n")
    stories = {each: covered_by_stories(each, args.trials) for each in STORIES}
    for count, share in stories.items():
        sys.stdout.write(f"{count} stories: {share}\n")
    for count, categories in SIZES.items():
        null[count] = significant(count, categories, args.trials)
        sys.stdout.write(f"{count} subjects, equally good: {null[count]}\n")
    if args.out is not None:
        results = {
            "what": "shares of 95% intervals that hold the truth; of p-values below levels between equally good methods",
            **facts(torch.device("cpu")),
            "trials": args.trials,
            "studies": studies,
            "subjects": {count: _plain(shares) for count, shares in subjects.items()},
            "raters": {count: _plain(shares) for count, shares in raters.items()},
            "stories": _plain(stories),
            "p_levels": LEVELS,
            "equally_good": _plain(null),
        }
        write(args.out, results)
    for line in (failed := too_low(subjects)):
        sys.stderr.write(f"too low: {line}\n")
    return int(bool(failed))


def _plain(results: Mapping[Any, Any]) -> dict[str, Any]:
    return {str(name): asdict(each) for name, each in results.items()}


if __name__ == "__main__":
    sys.exit(main())
