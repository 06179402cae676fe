"""The report of an ablation states what its runs measured, names missing runs, and is stable when written again."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml
from PIL import Image
from support.commands import ROOT
from support.web.browser import CHROMIUM, Page

from dsd_lightning.ablation.__main__ import main
from dsd_lightning.ablation.cells import columns
from dsd_lightning.ablation.plots import sheet_seed
from dsd_lightning.ablation.report import write_report
from dsd_lightning.ablation.runs import AblationError, collect, load, planned
from dsd_lightning.ablation.table import LOSS, Estimate, Row, estimate, ordered, tables
from dsd_lightning.ablation.table import Table as MetricsTable
from dsd_lightning.files.rows import Table
from dsd_lightning.images.sheet import FINAL, ROWS
from dsd_lightning.runs.folder import CONFIG, FAILURE, METRICS, SAMPLES, SUMMARY

COLOURS = {"parallel": (200, 30, 30), "concat": (30, 200, 30), "text_only": (30, 30, 200)}
REFERENCES = [(10, 10, 10), (90, 90, 90)]


def write_run(
    sweep: Path,
    place: str,
    accuracy: float | None,
    finished: bool = True,
    config: Mapping[str, Any] | None = None,
    references: Sequence[tuple[int, int, int]] = REFERENCES,
) -> Path:
    """Write a run's folder by hand, as training leaves it."""
    task, label, seed = place.split("/")
    folder = sweep / place
    (folder / SAMPLES / FINAL).mkdir(parents=True)
    settings = {
        "task": {"name": task},
        "arch": {"_target_": label},
        "seed": int(seed[4:]),
        "trainer": {"max_steps": 20},
    }
    (folder / CONFIG).write_text(yaml.safe_dump(settings | dict(config or {})))
    with (folder / METRICS).open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["step", "val/loss_target", "val/loss_right_bin0", "probe/identity_accuracy"])
        rows_logged = [["10", "0.5", "0.1", ""], ["20", "0.4", "0.1", accuracy or 0.0]]
        writer.writerows(rows_logged if finished else rows_logged[:1])
    summary = {
        "finished": finished, "steps": 20 if finished else 10, "pairs_seen": 80, "identity_accuracy": accuracy,
        "val/loss_target": 0.4, "parameters_trained": 1234, "flops_per_pair": 2e9, "seconds_per_pair": 0.005,
        "peak_memory_gib": 0.25,
    }  # fmt: skip
    (folder / SUMMARY).write_text(json.dumps(summary))
    if finished:
        rows = []
        for index, colour in enumerate(references):
            images = {}
            for column, fill in (("reference", colour), ("generated", COLOURS[label]), ("truth", (255, 255, 0))):
                images[column] = f"{index:02d}_{column}.png"
                Image.new("RGB", (8, 8), fill).save(folder / SAMPLES / FINAL / images[column])
            rows.append({"key": f"pair-{index}", "caption": f"caption {index}", "images": images})
        (folder / SAMPLES / FINAL / ROWS).write_text(json.dumps(rows))
    return folder


@pytest.fixture
def sweep(tmp_path: Path) -> Path:
    """Return the folder of a sweep with three seeds of one architecture, one of another, and two that did not finish."""
    root = tmp_path / "sweep"
    for seed, accuracy in enumerate((0.5, 0.6, 0.7)):
        write_run(root, f"identity/parallel/seed{seed}", accuracy)
    write_run(root, "identity/text_only/seed0", 0.0625)
    write_run(root, "identity/text_only/seed1", None, finished=False)
    failed = root / "identity/concat/seed0"
    failed.mkdir(parents=True)
    (failed / FAILURE).write_text("out of memory\n\nTraceback ...")
    hydra = {
        "sweep": {"dir": "x", "subdir": "${hydra.runtime.choices.task}/${hydra.runtime.choices.arch}/seed${seed}"},
        "sweeper": {"params": {"seed": "0,1,2", "task": "identity,depth", "arch": "parallel,text_only"}},
        "overrides": {"task": ["task=identity", "experiment=ablation", "~callbacks.probe", "arch.lora.rank=2"]},
    }
    (root / "multirun.yaml").write_text(yaml.safe_dump({"hydra": hydra}, sort_keys=False))
    return root


def test_the_interval_is_students() -> None:
    # Three values 0.5, 0.6, 0.7: t(0.975, 2) = 4.302653, times 0.1 / sqrt(3).
    mean = estimate([0.5, 0.6, 0.7])
    assert (mean.mean, mean.half_width) == (pytest.approx(0.6), pytest.approx(0.2484138, abs=1e-6))
    assert mean == Estimate(mean.mean, mean.half_width, 3)
    assert estimate([2.0]) == Estimate(2.0, None, 1)
    assert estimate([]) is None


def test_the_table_states_what_the_runs_measured(sweep: Path, tmp_path: Path) -> None:
    write_report(sweep, tmp_path / "report")
    (table,) = json.loads((tmp_path / "report" / "report.json").read_text())["tables"]
    rows = {row["label"]: row for row in table["rows"]}
    assert list(rows) == ["parallel", "text_only"]
    assert rows["parallel"]["seeds"] == [0, 1, 2]
    assert rows["parallel"]["metrics"]["identity_accuracy"]["mean"] == pytest.approx(0.6)
    assert rows["parallel"]["metrics"]["identity_accuracy"]["half_width"] == pytest.approx(0.2484138, abs=1e-6)
    alone = rows["text_only"]["metrics"]
    assert alone["identity_accuracy"] == {"mean": 0.0625, "half_width": None, "count": 1}
    assert alone["flops_per_pair"]["mean"] == pytest.approx(2e9)
    assert alone["seconds_per_pair"]["mean"] == pytest.approx(0.005)
    page = (tmp_path / "report" / "report.html").read_text()
    for text in (
        "<b>0.60 ± 0.25</b>",
        "<td>0.06</td>",
        "1,234",
        "GFLOP a pair ↓",
        "identity_accuracy ↑",
        "<td>3 (0, 1, 2)</td>",
        "<td>1 (0)</td>",  # a lone 0 would read as no seed at all
    ):
        assert text in page
    assert "<script" not in page
    assert "src=" in page
    assert 'src="http' not in page
    lines = Table(tmp_path / "report" / "table.csv")
    assert {line.text("metric") for line in lines} >= {"identity_accuracy", "peak_memory_gib", "parameters_trained"}


def test_missing_runs_are_named_and_never_counted(sweep: Path, tmp_path: Path) -> None:
    states = {(run.task, run.label, run.seed): run.state for run in write_report(sweep, tmp_path / "report")}
    assert states == {
        ("identity", "concat", 0): "failed: out of memory",
        ("identity", "text_only", 1): "unfinished, at step 10",
        ("identity", "text_only", 2): "not started",
    }
    for name in ("report.html", "report.md"):
        page = (tmp_path / "report" / name).read_text()
        assert "identity / text_only / seed 2: not started" in page
        assert "concat / seed 0: failed: out of memory" in page
    assert not list((tmp_path / "report").rglob("*text_only-seed1*"))


def test_the_plan_is_that_of_the_last_command(sweep: Path) -> None:
    assert planned(sweep) == [("identity", arch, seed) for seed in range(3) for arch in ("parallel", "text_only")]
    saved = yaml.safe_load((sweep / "multirun.yaml").read_text())
    saved["hydra"]["sweep"]["subdir"] = "${oc.env:WHERE}"
    (sweep / "multirun.yaml").write_text(yaml.safe_dump(saved, sort_keys=False))
    assert planned(sweep) == []


def test_the_sheet_has_images_in_their_columns(sweep: Path, tmp_path: Path) -> None:
    write_report(sweep, tmp_path / "report")
    with Image.open(tmp_path / "report" / "samples_identity.png") as sheet:
        colours = [colour for _, colour in sorted((n, c) for n, c in sheet.getcolors(1 << 24))[::-1]][:8]
        for colour in (*REFERENCES, COLOURS["parallel"], COLOURS["text_only"], (255, 255, 0)):
            assert colour in colours
        across = [sheet.getpixel((x, sheet.height // 3)) for x in range(sheet.width)]
    order = [REFERENCES[0], COLOURS["parallel"], COLOURS["text_only"], (255, 255, 0)]
    assert [across.index(colour) for colour in order] == sorted(across.index(colour) for colour in order)
    with Image.open(tmp_path / "report" / "curves_identity_val_loss_target.png") as plot:
        assert plot.width < 1.4 * plot.height  # one to a phone's width


def test_a_run_on_other_references_is_not_on_the_sheet(sweep: Path, tmp_path: Path) -> None:
    write_run(sweep, "identity/concat/seed3", 0.5)
    write_run(sweep, "identity/text_only/seed3", 0.5, references=REFERENCES[::-1])
    write_run(sweep, "identity/parallel/seed3", 0.5)
    write_report(sweep, tmp_path / "report")
    assert sheet_seed(load(tmp_path / "report")) == 3
    assert "same references at this seed: text_only" in (tmp_path / "report" / "report.md").read_text()


def test_runs_that_differ_in_more_than_the_architecture_are_named(sweep: Path, tmp_path: Path) -> None:
    assert not any(table.differences for table in tables(_collected(sweep, tmp_path / "before")))
    write_run(sweep, "identity/text_only/seed5", 0.1, config={"trainer": {"max_steps": 99}, "logger": {"csv": 1}})
    (table,) = tables(_collected(sweep, tmp_path / "after"))
    assert set(table.differences) == {"trainer.max_steps"}
    assert table.differences["trainer.max_steps"]["99"] == ["identity-text_only-seed5"]
    assert table.differences["trainer.max_steps"]["20"] == ["parallel", "identity-text_only-seed0"]
    write_report(sweep, tmp_path / "after")
    assert "trainer.max_steps" in (tmp_path / "after" / "report.html").read_text()


def test_runs_of_one_row_that_differ_in_their_architecture_are_named(sweep: Path, tmp_path: Path) -> None:
    write_run(sweep, "identity/text_only/seed5", 0.1, config={"arch": {"lora": {"rank": 99}}})
    (table,) = tables(_collected(sweep, tmp_path))
    assert table.differences["arch.lora.rank"]["99"] == ["identity-text_only-seed5"]


def _collected(sweep: Path, output: Path) -> Any:
    collect(sweep, output)
    return load(output)


def test_collected_runs_survive_their_folders_and_make_the_same_report(sweep: Path, tmp_path: Path) -> None:
    report = tmp_path / "report"
    (tmp_path / "report").mkdir()
    (report / "findings.md").write_text("# Who wins?\n\n**Parallel** wins <here>.")
    main([str(sweep), "--output", str(report)])
    written = {path.name: path.read_bytes() for path in report.iterdir() if path.is_file()}
    assert b"<strong>Parallel</strong> wins &lt;here&gt;." in written["report.html"]
    assert b"<h1>Who wins?</h1>" in written["report.html"]
    assert written["report.md"].startswith(b"# Who wins?\n\n**Parallel** wins")
    assert written["report.md"].count(b"Who wins?") == 1
    files = sorted(path.name for path in (report / "runs").glob("*.json"))
    assert files == [*(f"identity-parallel-seed{seed}.json" for seed in range(3)), "identity-text_only-seed0.json"]
    # References and truths are shared among runs: two references, two architectures' results, one truth.
    assert len(list((report / "runs" / "images").iterdir())) == 5

    (sweep / "identity" / "parallel").rename(tmp_path / "gone")
    assert not [run for run in write_report(sweep, report) if run.label == "parallel"]
    again = {path.name: path.read_bytes() for path in report.iterdir() if path.is_file()}
    assert again.keys() == written.keys()
    for name in ("report.html", "report.md", "report.json", "table.csv"):
        assert again[name] == written[name], name
    main(["--output", str(report)])
    assert (report / "table.csv").read_bytes() == written["table.csv"]


def test_a_folder_without_runs_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(AblationError, match="holds no runs"):
        write_report(tmp_path, tmp_path / "report")
    write_run(tmp_path, "identity/parallel/seed0", 0.1, finished=False)
    with pytest.raises(SystemExit) as end:
        main([str(tmp_path)])
    assert end.value.code == 2
    assert "identity/parallel/seed0 is unfinished, at step 10" in capsys.readouterr().err


def test_architectures_stand_in_the_papers_order_and_numbers_by_their_size() -> None:
    assert ordered(["text_only", "ip_adapter", "concat", "parallel", "controlnet", "reference_tokens"]) == [
        *("parallel", "concat", "controlnet", "ip_adapter", "reference_tokens", "text_only")
    ]
    assert ordered(["rank16", "rank2", "arch=parallel"]) == ["arch=parallel", "rank2", "rank16"]


def test_digits_are_alike_in_a_column_and_the_best_goes_by_its_direction() -> None:
    rows = [
        Row("a", [0, 1], {"copy_paste": Estimate(-0.2, 0.034, 2), LOSS: Estimate(0.41, None, 1)}),
        Row("b", [0], {"copy_paste": Estimate(0.1, None, 1), LOSS: Estimate(0.5, None, 1)}),
        Row("c", [0], {LOSS: Estimate(0.41, None, 1)}),
    ]
    copied, loss, *costs = columns(MetricsTable("identity", ["copy_paste", LOSS], rows, {}))
    assert copied.heading == "copy_paste → 0"
    assert copied.texts == {"a": "-0.200 ± 0.034", "b": "0.100", "c": "\N{EN DASH}"}
    assert copied.best == {"b"}
    assert loss.heading == f"{LOSS} ↓"
    assert loss.texts == {"a": "0.410", "b": "0.500", "c": "0.410"}
    assert loss.best == {"a", "c"}
    assert not any(cost.best for cost in costs)


def test_a_setting_that_names_what_is_compared_is_no_difference(tmp_path: Path) -> None:
    for label in ("parallel", "concat"):
        rate = 1e-4 if label == "concat" else 2e-4
        config = {"pairs": label, "data": {"root": f"sets/{label}/train"}, "optimizer": {"lr": rate}}
        write_run(tmp_path / "sweep", f"identity/{label}/seed0", 0.5, config=config)
    (table,) = tables(_collected(tmp_path / "sweep", tmp_path / "report"))
    assert set(table.differences) == {"optimizer.lr"}


def test_any_sweep_is_reported_by_the_overrides_in_which_its_runs_differ(tmp_path: Path) -> None:
    sweep = tmp_path / "multirun" / "2026-01-01" / "12-00-00"
    for number, (rate, seed) in enumerate([(0.01, 0), (0.01, 1), (0.002, 0), (0.002, 1)]):
        overrides = [f"optimizer.lr={rate}", f"seed={seed}", "trainer.max_steps=20"]
        config = {"overrides": overrides, "optimizer": {"lr": rate}, "seed": seed}
        folder = write_run(tmp_path / "made", f"identity/parallel/seed{seed}", rate * 10 + seed / 100, config=config)
        sweep.mkdir(parents=True, exist_ok=True)
        folder.rename(sweep / str(number))
    assert write_report(sweep, tmp_path / "report") == []
    (table,) = tables(load(tmp_path / "report"))
    assert [row.label for row in table.rows] == ["optimizer.lr=0.002", "optimizer.lr=0.01"]
    assert [list(row.seeds) for row in table.rows] == [[0, 1], [0, 1]]
    assert not table.differences
    assert "| optimizer.lr=0.002 | 2 (0, 1) |" in (tmp_path / "report" / "report.md").read_text()


@pytest.mark.long
@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium: apt-get install chromium")
def test_the_kept_report_fits_a_phone(tmp_path: Path) -> None:
    report = ROOT / "docs" / "ablation" / "report.html"
    with Page(report.as_uri(), tmp_path / "profile", tmp_path) as person:
        person.resize(390)
        assert person.fits()
