"""Reads published scores, which tables show beside those of other judges.

Sources: `published/dreambenchpp.csv`, DreamBench++'s leaderboard (https://dreambenchplus.github.io), and
`published/dsd_table1.csv`, Table 1 of Diffusion Self-Distillation (arXiv 2411.18616). Values are shares, 0 to 1, judged by
gpt-4o-2024-05-13, which is no longer served.
"""

from __future__ import annotations

from pathlib import Path

from dsd_lightning.evaluation.scores.aggregate import PROMPTS_OF, SUBJECTS_OF
from dsd_lightning.files.rows import Row, Table

JUDGE = "gpt-4o-2024-05-13"

FOLDER = Path(__file__).parent / "published"
LEADERBOARD, PAPER = "DreamBench++ leaderboard", "Diffusion Self-Distillation, Table 1"


def leaderboard() -> list[Row]:
    """Return DreamBench++'s leaderboard, a row a method."""
    return list(Table(FOLDER / "dreambenchpp.csv"))


def table1() -> list[Row]:
    """Return the paper's Table 1, a row a method."""
    return list(Table(FOLDER / "dsd_table1.csv"))


def leaderboard_values(row: Row) -> tuple[dict[str, float], dict[str, float]]:
    """Return a leaderboard row's values by category and by prompt kind."""
    return (
        {name: float(row.required_text(f"cp_{name}")) for name in SUBJECTS_OF},
        {name: float(row.required_text(f"pf_{name}")) for name in PROMPTS_OF},
    )
