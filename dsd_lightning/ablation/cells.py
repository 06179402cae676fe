"""Writes a table's cells: equal digits in a column, the best score marked, and in which direction it is best."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from dsd_lightning.ablation.table import COSTS, LOSS, Estimate, Table

_HIGHER, _LOWER, _ZERO = "↑", "↓", "→ 0"
_DIRECTIONS = {LOSS: _LOWER, "depth_abs_rel": _LOWER, "copy_paste": _ZERO, **dict.fromkeys(COSTS, _LOWER)}
"""Of metrics of which more is not better."""

_GOODNESS: Mapping[str, Callable[[float], float]] = {
    _HIGHER: lambda value: value,
    _LOWER: lambda value: -value,
    _ZERO: lambda value: -abs(value),
}
_NONE = "\N{EN DASH}"
_SIGNIFICANT, _OF_INTERVALS = 4, 2
"""Digits of the largest value of a column without intervals; of the narrowest interval of one that has some."""


@dataclass(frozen=True)
class Column:
    """One metric of a table.

    Attributes:
        heading: its name and, behind it, in which direction values are better.
        texts: a cell for each row, by the row's label.
        best: labels of the rows with the best value; empty for costs, and where there is nothing to compare.
    """

    heading: str
    texts: Mapping[str, str]
    best: frozenset[str]


def columns(table: Table) -> list[Column]:
    """Return the columns of a table: scores, then costs."""
    return [_column(table, name) for name in table.metrics]


def _column(table: Table, name: str) -> Column:
    direction = _DIRECTIONS.get(name, _HIGHER)
    values = {row.label: row.metrics[name] for row in table.rows if name in row.metrics}
    digits = _digits(list(values.values()))
    texts = {row.label: _text(values[row.label], digits) if row.label in values else _NONE for row in table.rows}
    best: frozenset[str] = frozenset()
    if name not in COSTS and len(values) > 1:
        good = {label: _GOODNESS[direction](value.mean) for label, value in values.items()}
        best = frozenset(label for label in good if good[label] == max(good.values()))
    heading = COSTS[name][0] if name in COSTS else name
    return Column(f"{heading} {direction}", texts, best)


def _digits(values: Sequence[Estimate]) -> int:
    """Return the decimals that all values of a column are written with."""
    widths = [value.half_width for value in values if value.half_width]
    if widths:
        return max(0, _OF_INTERVALS - 1 - math.floor(math.log10(min(widths))))
    means = [abs(value.mean) for value in values if value.mean]
    if not means or all(mean == round(mean) for mean in means):
        return 0
    return max(0, _SIGNIFICANT - 1 - max(0, math.floor(math.log10(max(means)))))


def _text(value: Estimate, digits: int) -> str:
    text = f"{value.mean:,.{digits}f}"
    return f"{text} ± {value.half_width:,.{digits}f}" if value.half_width else text
