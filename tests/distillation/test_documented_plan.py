"""What docs/distill.md says of 400,000 pairs is what the dry run expects, and the SLURM example's budget holds it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from support.commands import ROOT
from support.distill_runs import compose_distill

from dsd_lightning.distillation.expectation import expect, outlook
from dsd_lightning.distillation.yields import captions_wanted

FEW = 2000
"""Captions of which the calls are counted; all others are expected to take as many."""


def number(pattern: str, text: str) -> float:
    """Return the number that a text says in a place."""
    (match,) = re.findall(pattern, text)
    return float(match.replace(",", ""))


def test_documented_numbers_are_those_of_the_dry_run(tmp_path: Path) -> None:
    document = re.sub(r"\s+", " ", (ROOT / "docs" / "distill.md").read_text())
    captions = tmp_path / "captions.txt"
    captions.write_text("".join(f"a photograph of dog number {each:06d}\n" for each in range(FEW)))
    given = ["agents=paper", "captions=files", f"captions.path={captions}", f"out={tmp_path / 'run'}"]
    wanted = captions_wanted(compose_distill(*given, "pairs=400000"))
    assert number(r"400,000 pairs take ([\d,]+) captions", document) == pytest.approx(wanted, rel=0.01)
    few = compose_distill(*given, f"count={FEW}")
    said = outlook(few, expect(few))
    scale = wanted / FEW
    for shown, pattern in {
        r"captions, ([\d,]+) grids": r"  grids +([\d,]+),",
        r"\(([\d,]+) hours of one H100": r", ([\d,.]+) hours of one H100",
        r", ([\d,]+) of one RTX 4090\)": r"RTX 4090 24GB ([\d,.]+)",
        r"about ([\d,]+) USD with `agents=paper`": r"about ([\d,.]+) USD",
    }.items():
        assert number(shown, document) == pytest.approx(scale * number(pattern, said), rel=0.05), shown
    calls = scale * number(r"  calls +([\d,]+),", said)
    assert number(r"([\d.]+) million calls", document) * 1e6 == pytest.approx(calls, rel=0.05)
    days = (
        scale * number(r"  time +([\d,.]+) hours", said) / 24 - number(r"\(([\d,]+) hours of one H100", document) / 24
    )
    assert number(r"the calls take (\d+) days", document) == pytest.approx(days, rel=0.1)
    budgets = {float(each) for each in re.findall(r"agents\.budget\.budget_usd=(\d+)", document)}
    assert budgets == {12000.0}
    assert min(budgets) > scale * number(r"about ([\d,.]+) USD", said)
