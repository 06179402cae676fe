"""Defines a rating, which tables, pages and rating files are read into."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Rating:
    """One rater's score of one method's image, by one criterion; NaN where the rater was asked and gave none."""

    rater: str
    item: str
    method: str
    criterion: str
    score: float
