"""Lays estimates out as in the paper; a table has one judge, one set of rubrics and one rule."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from dsd_lightning.evaluation.scores import intervals, published
from dsd_lightning.evaluation.scores.aggregate import PROMPTS_OF, SUBJECTS_OF, Rule, overall_of_values
from dsd_lightning.evaluation.scores.comparison import require_alike
from dsd_lightning.evaluation.scores.estimates import Estimate, Scores, estimates

HEADINGS = {"photorealistic": "Real.", "imaginative": "Imag."}
"""The paper's headings that differ from the groups' names."""

Cell = tuple[str, ...]
"""Lines: the estimate and, unless published, its interval and its sample sizes."""


@dataclass(frozen=True)
class Table:
    """Rows of one judge and one rule.

    Attributes:
        title: of the table.
        judge, rule: of every estimate in it; None for a table without rules.
        columns: (heading of the group, heading) of every column.
        rows: (method, cells).
        notes: lines below it.
    """

    title: str
    judge: str
    rule: Rule | None
    columns: tuple[tuple[str, str], ...]
    rows: tuple[tuple[str, tuple[Cell, ...]], ...]
    notes: tuple[str, ...] = field(default=())


def tables(rows: Sequence[Scores]) -> list[Table]:
    """Return the tables of methods, plain and debiased, each followed by the published rows under the same rule.

    Raises:
        EvaluationError: rows of different judges, rubrics or rules.
    """
    require_alike(rows)
    result = []
    by_row = [estimates(row) for row in rows]
    for prefix, title in (("", "Plain"), ("debiased_", "Debiased")):
        columns = _columns(rows, prefix)
        if not columns:
            continue
        body = tuple(
            (row.method, tuple(_cell(values.get(name)) for name in columns))
            for row, values in zip(rows, by_row, strict=True)
        )
        result.append(Table(title, rows[0].judge, rows[0].rule, _headings(columns), body, _notes(rows)))
        result += published_tables(rows[0].rule, debiased=bool(prefix))
    return result


def _columns(rows: Sequence[Scores], prefix: str) -> list[str]:
    """Return the names of the estimates that a table shows, in the paper's order."""
    names = []
    for measure, order in ((f"{prefix}cp", SUBJECTS_OF), (f"{prefix}pf", PROMPTS_OF)):
        measured = [row for row in rows if measure in row.sums]
        if not measured:
            continue
        axis = "categories" if measure.endswith("cp") else "kinds"
        groups = sorted({name for row in measured for name in getattr(row, axis)})
        groups.sort(key=lambda name: list(order).index(name) if name in order else len(order))
        names += [f"{measure}/{group}" for group in groups] if len(groups) > 1 else []
        names.append(measure)
    if {f"{prefix}cp", f"{prefix}pf"} <= set(names):
        names.append(f"{prefix}cp_pf")
    return names


def _headings(names: Sequence[str]) -> tuple[tuple[str, str], ...]:
    return tuple((_group(name), _heading(name)) for name in names)


def _group(name: str) -> str:
    if name.endswith("cp_pf"):
        return ""
    return "Concept preservation" if name.split("/")[0].endswith("cp") else "Prompt following"


def _heading(name: str) -> str:
    if name.endswith("cp_pf"):
        return "CP x PF"
    group = name.partition("/")[2]
    return HEADINGS.get(group, group.capitalize()) if group else "Overall"


def _cell(estimate: Estimate | None) -> Cell:
    if estimate is None or math.isnan(estimate.value):
        return ("-",) if estimate is None else ("-", "", *estimate.sizes)
    return (f"{estimate.value:.3f}", intervals.text(estimate.low, estimate.high), *estimate.sizes)


def _notes(rows: Sequence[Scores]) -> tuple[str, ...]:
    notes = ["[..]: 95% interval over subjects. Missing: judgements without a score"]
    for row in rows:
        if row.failures:
            notes.append(f"{row.method}, without a score: " + ", ".join(f"{k} {n}" for k, n in row.failures.items()))
    return tuple(notes)


# --- Published rows. Their N and missing counts were not published.


def published_tables(rule: Rule, debiased: bool) -> list[Table]:
    """Return published scores under a rule; none if the rule cannot be applied to them.

    Under `sample` and `category` the overalls are computed from the leaderboard's estimates by category and kind;
    `as-published` is the paper's Table 1 as printed.
    """
    if rule == "as-published":
        return [_table1(debiased)]
    return [] if debiased else [_leaderboard(rule)]


def _leaderboard(rule: Rule) -> Table:
    rows = []
    for row in published.leaderboard():
        cp, pf = published.leaderboard_values(row)
        totals = overall_of_values(cp, SUBJECTS_OF, rule), overall_of_values(pf, PROMPTS_OF, rule)
        values = [*cp.values(), totals[0], *pf.values(), totals[1], totals[0] * totals[1]]
        rows.append((row.required_text("method"), tuple((f"{value:.3f}",) for value in values)))
    names = [*(f"cp/{name}" for name in SUBJECTS_OF), "cp", *(f"pf/{name}" for name in PROMPTS_OF), "pf", "cp_pf"]
    note = "Overalls computed from the published estimates. N and missing counts were not published."
    return Table(f"Published: {published.LEADERBOARD}", published.JUDGE, rule, _headings(names), tuple(rows), (note,))


def _table1(debiased: bool) -> Table:
    prefix = "d" if debiased else ""
    names = ["cp/animal", "cp/human", "cp/object", "cp", "pf/photorealistic", "pf/imaginative", "pf", "cp_pf"]
    printed = ("cp_animal", "cp_human", "cp_object", "cp_overall", "pf_real", "pf_imag", "pf_overall", "cp_pf")
    rows = tuple(
        (row.required_text("method"), tuple((row.required_text(f"{prefix}{column}"),) for column in printed))
        for row in published.table1()
    )
    note = "As printed; the rows mix rules (docs/evaluate.md). N and missing counts were not published."
    title = f"Published: {published.PAPER}, {'debiased' if debiased else 'plain'}"
    return Table(title, published.JUDGE, "as-published", _headings(names), rows, (note,))
