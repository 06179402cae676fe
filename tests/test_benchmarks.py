"""Do the benchmarks run, and do they measure what they say?"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import kept_reference


def test_the_kept_reference_is_measured_against_the_other_ways(
    tiny_base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "figures.json"
    few = ["--steps", "2", "--size", "32", "--batch", "1", "--repeats", "1", "--json", str(file)]
    assert kept_reference.main([*few, f"base.model.path={tiny_base}", "arch.lora.rank=2"]) == 0
    figures = json.loads(file.read_text())
    ways = {kept_reference.APPENDED, kept_reference.RECOMPUTED, kept_reference.KEPT, kept_reference.NONE}
    assert set(figures["seconds"]) == ways
    assert all(value > 0 for value in figures["seconds"].values())
    assert figures["ratio_to_kept"][kept_reference.KEPT] == 1
    assert figures["largest_difference_of_kept_and_recomputed"] == 0
    told = capsys.readouterr().out
    assert all(way in told for way in ways)


def test_a_wrong_setting_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert kept_reference.main([f"base.model.path={tmp_path}"]) == 2
    assert "transformer" in capsys.readouterr().err
