"""Defines the errors of evaluation; each message names the value and the remedy."""

from __future__ import annotations


class EvaluationError(ValueError):
    """An input that cannot be scored, or metrics that must not be in one table."""


class CoverageTooLow(EvaluationError):
    """Too many judgements have no score for the metrics to mean anything."""
