"""What has been published, under which rule was it made, and which printed values does no rule reproduce?

Sources: `published/dreambenchpp.csv`, DreamBench++'s leaderboard (https://dreambenchplus.github.io);
`published/dsd_table1.csv` and `published/dsd_table2_user_study.csv`, Tables 1 and 2 of Diffusion Self-Distillation
(arXiv 2411.18616). Values are shares, 0 to 1, judged by gpt-4o-2024-05-13, which can no longer be asked.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from dsd_lightning.evaluation.scores.aggregate import PROMPTS_OF, SUBJECTS_OF, Rule, overall_of_values

JUDGE = "gpt-4o-2024-05-13"
TOLERANCE = 0.001
"""Printed values have three digits, and so have those that they are computed of."""

FOLDER = Path(__file__).parent / "published"
LEADERBOARD, PAPER = "DreamBench++ leaderboard", "Diffusion Self-Distillation, Table 1"

_NAMES = {"IP-Adapter": "IP-Adapter ViT-G", "IP-Adapter+": "IP-Adapter-Plus ViT-H"}
"""The paper's names of the leaderboard's methods, where they differ."""

Row = dict[str, str]


def _rows(name: str) -> list[Row]:
    with (FOLDER / name).open(newline="", encoding="utf-8") as lines:
        return list(csv.DictReader(lines))


def leaderboard() -> list[Row]:
    """Return DreamBench++'s leaderboard, a mapping of texts a method."""
    return _rows("dreambenchpp.csv")


def table1() -> list[Row]:
    """Return the paper's Table 1, a mapping of texts a method."""
    return _rows("dsd_table1.csv")


def user_study() -> list[Row]:
    """Return the paper's Table 2 (1 to 5), a mapping of texts a method."""
    return _rows("dsd_table2_user_study.csv")


@dataclass(frozen=True)
class Cell:
    """A printed overall or product, and what made it."""

    table: str
    method: str
    column: str
    printed: float
    rule: Rule | None
    """The rule that reproduces it within `TOLERANCE`; None where none does."""
    computed: float
    """By that rule; by the sample rule where none reproduces it."""

    def __str__(self) -> str:
        """Return a line for people."""
        how = f"{self.rule} rule" if self.rule else "no rule reproduces it; its parts make"
        return f"{self.table}: {self.method}, {self.column} {self.printed:.3f}: {how} {self.computed:.4f}"


def _cell(table: str, method: str, column: str, printed: float, attempts: list[tuple[Rule, float]]) -> Cell:
    # What is compared has been rounded to three digits; the allowance is for the binary form of these numbers.
    for rule, value in attempts:
        if abs(value - printed) <= TOLERANCE + 1e-9:
            return Cell(table, method, column, printed, rule, value)
    return Cell(table, method, column, printed, None, attempts[0][1])


def leaderboard_cells() -> list[Cell]:
    """Return every overall and product of the leaderboard with the rule that reproduces it."""
    cells = []
    for row in leaderboard():
        cp, pf = leaderboard_values(row)
        computed = overall_of_values(cp, SUBJECTS_OF, "sample"), overall_of_values(pf, PROMPTS_OF, "sample")
        printed = float(row["cp_overall"]), float(row["pf_overall"])
        for column, one, value in zip(("cp_overall", "pf_overall"), printed, computed, strict=True):
            cells.append(_cell(LEADERBOARD, row["method"], column, one, [("sample", value)]))
        cells.append(
            _cell(LEADERBOARD, row["method"], "cp_pf", float(row["cp_pf"]), [("sample", computed[0] * computed[1])])
        )
    return cells


def leaderboard_values(row: Row) -> tuple[dict[str, float], dict[str, float]]:
    """Return a leaderboard row's values by category and by prompt kind."""
    return (
        {name: float(row[f"cp_{name}"]) for name in SUBJECTS_OF},
        {name: float(row[f"pf_{name}"]) for name in PROMPTS_OF},
    )


def table1_cells() -> list[Cell]:
    """Return every overall and product of Table 1 with the rule that reproduces it.

    The nearer of two rules that both do is taken. The plain mean of prompt kinds needs the style prompts' value, which the
    table leaves out: it is the leaderboard's. Products are those of the printed overalls.
    """
    styles = {row["method"]: float(row["pf_style"]) for row in leaderboard()}
    cells = []
    for row in table1():
        method = row["method"]
        for prefix in ("", "d"):
            by_category = {name: float(row[f"{prefix}cp_{name}"]) for name in ("animal", "human", "object")}
            kinds = {"photorealistic": float(row[f"{prefix}pf_real"]), "imaginative": float(row[f"{prefix}pf_imag"])}
            style = styles.get(_NAMES.get(method, method))
            with_style = kinds | ({} if prefix or style is None else {"style": style})
            for column, values, weights in (
                (f"{prefix}cp_overall", by_category, SUBJECTS_OF),
                (f"{prefix}pf_overall", with_style, PROMPTS_OF),
            ):
                printed = float(row[column])
                attempts: list[tuple[Rule, float]] = [
                    ("as-published", overall_of_values(values, weights, "as-published")),
                    ("category", overall_of_values(values, weights, "category")),
                ]
                attempts.sort(key=lambda attempt: abs(attempt[1] - printed))
                cells.append(_cell(PAPER, method, column, printed, attempts))
            product = float(row[f"{prefix}cp_overall"]) * float(row[f"{prefix}pf_overall"])
            cells.append(
                _cell(PAPER, method, f"{prefix}cp_pf", float(row[f"{prefix}cp_pf"]), [("as-published", product)])
            )
    return cells


def impossible_ratings(lowest: float = 1.0, highest: float = 5.0) -> Iterator[str]:
    """Yield the cells of the user study's table that no mean of ratings on its scale can be."""
    for row in user_study():
        for column in ("cp", "pf", "creativity"):
            if not lowest <= float(row[column]) <= highest:
                yield f"Table 2: {row['method']}, {column} {row[column]} lies outside {lowest:g} to {highest:g}"


def misprints() -> Iterator[str]:
    """Yield the values of Table 1 that are the leaderboard's, but printed otherwise there."""
    known = {row["method"]: row for row in leaderboard()}
    columns = {
        "cp_animal": "cp_animal",
        "cp_human": "cp_human",
        "cp_object": "cp_object",
        "pf_real": "pf_photorealistic",
        "pf_imag": "pf_imaginative",
    }
    for row in table1():
        other = known.get(_NAMES.get(row["method"], row["method"]))
        for column, name in columns.items():
            if other is not None and row[column] != other[name]:
                yield f"Table 1: {row['method']}, {column} {row[column]}; the leaderboard has {other[name]}"
