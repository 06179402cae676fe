"""What a dry run expects follows from shares, or from an earlier run's report, and scales with the pairs wanted."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from dsd_lightning.distillation.records import DistillationError
from dsd_lightning.distillation.yields import Yields, captions_wanted

SHARES = {"filter": 0.5, "prompts": 1.0, "split": 0.5, "verify": 0.25, "caption": 0.8, "seconds_per_grid": 7.0}


def test_pairs_and_captions_are_inverse() -> None:
    yields = Yields(**SHARES)
    assert yields.grids(100, 2) == 100
    assert yields.pairs(100, 2) == pytest.approx(100 * 0.5 * 6 * 0.25 * 0.8 * 2)
    for pairs in (1, 399, 400_000):
        captions = yields.captions(pairs, 2)
        assert yields.pairs(captions, 2) >= pairs > yields.pairs(captions - 1, 2)


def test_pairs_take_the_place_of_count() -> None:
    target = {"_target_": "dsd_lightning.distillation.yields.Yields", **SHARES}
    config = OmegaConf.create(
        {"count": 150, "pairs": None, "expected": target, "stages": {"grids": {"seeds_per_prompt": 1}}}
    )
    assert captions_wanted(config) == 150
    config.pairs = 600
    assert captions_wanted(config) == 1000
    config.pairs = 0
    with pytest.raises(DistillationError, match="pairs=0"):
        captions_wanted(config)
    config.pairs, config.expected.verify = 600, 0
    with pytest.raises(DistillationError, match=r"expected\.verify=0"):
        captions_wanted(config)


def test_hours_of_other_gpus_follow_from_their_peaks() -> None:
    hours = Yields(**SHARES, gpu="h100").gpu_hours(3600)
    assert hours["H100 80GB SXM"] == pytest.approx(7.0)
    assert hours["A100 80GB"] == pytest.approx(7.0 * 989 / 312)
    assert list(Yields(**SHARES, gpu="a100").gpu_hours(1))[:2] == ["A100 80GB", "H100 80GB SXM"]
    assert Yields(**SHARES).gpu_hours(1800) == {"device": pytest.approx(3.5)}
    with pytest.raises(DistillationError, match=r"expected\.gpu=v100: choose one of a100"):
        Yields(**SHARES, gpu="v100").measured()


def test_an_earlier_run_replaces_the_shares(tmp_path: Path) -> None:
    with pytest.raises(DistillationError, match=r"report.json is missing"):
        Yields(**SHARES, run=str(tmp_path)).measured()
    counts = {
        "filter": (20, 10),
        "prompts": (10, 8),
        "grids": (8, 8),
        "split": (8, 4),
        "verify": (4, 12),
        "caption": (12, 9),
    }
    lines = [{"stage": stage, "taken": taken, "kept": kept, "seconds": 16.0} for stage, (taken, kept) in counts.items()]
    (tmp_path / "report.json").write_text(json.dumps({"run": {"lines": lines}}))
    measured = Yields(**SHARES, run=str(tmp_path)).measured()
    assert measured == Yields(0.5, 0.8, 0.5, 0.5, 0.75, 2.0)
    assert measured.pairs(20, 1) == pytest.approx(18)
