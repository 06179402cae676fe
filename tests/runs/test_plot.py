"""The curves of a run are plotted, also while it trains."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from dsd_lightning.runs.__main__ import main
from dsd_lightning.runs.plot import panels, read_curves

ROWS = """step,train/loss,val/loss_right,val/loss_right_bin0,optimizer/lr
0,2.0,,,0.1
1,1.5,1.25,1.0,0.1
2,1.0,,,0.1
3,0.
"""


def test_metrics_of_a_run_become_panels(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("matplotlib")
    (tmp_path / "metrics.csv").write_text(ROWS)  # the last row is half-written
    curves = read_curves(tmp_path)
    assert curves["train/loss"] == ([0, 1, 2], [2.0, 1.5, 1.0])
    assert panels(curves) == {
        "train/": ["train/loss"],
        "val/": ["val/loss_right"],
        "optimizer/lr": ["optimizer/lr"],
    }
    assert main(["plot", str(tmp_path)]) == 0
    assert capsys.readouterr().out.strip() == str(tmp_path / "curves.png")
    assert min(Image.open(tmp_path / "curves.png").size) > 500


def test_a_panel_has_one_unit() -> None:
    names = ("train/loss", "train/loss_spikes", "probe/identity_accuracy", "probe/reference_psnr", "probe/mask_iou")
    assert panels({name: ([0], [1.0]) for name in names}) == {
        "train/": ["train/loss"],
        "probe/reference_psnr": ["probe/reference_psnr"],
        "probe/": ["probe/identity_accuracy", "probe/mask_iou"],
    }


def test_a_folder_that_is_no_run_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plot", str(tmp_path)]) == 2
    assert f"{tmp_path / 'metrics.csv'} does not exist" in capsys.readouterr().err
    (tmp_path / "metrics.csv").write_text("step,train/loss\n")
    assert main(["plot", str(tmp_path)]) == 2
    assert "no complete row" in capsys.readouterr().err
