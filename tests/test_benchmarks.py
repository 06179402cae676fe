"""The benchmarks run, and measure what they say."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import (
    checkpoint,
    grid_splitting,
    kept_reference,
    loader,
    random_models,
    step_caches,
    trainer,
    training_step,
)
from benchmarks.generation import __main__ as generation
from benchmarks.measure import ratio
from benchmarks.peak_memory import __main__ as peak_memory
from benchmarks.published.__main__ import CODE, COMPARED
from benchmarks.published.comparison import TOLERANCE, Comparison
from benchmarks.published.stand_ins import in_parts, reply_to
from benchmarks.reproduce import __main__ as reproduce
from benchmarks.reproduce.claims import ROOT, Value, agreement, measure, table
from dsd_lightning.distillation.records import Record
from dsd_lightning.evaluation.judging.judgements import MEASURES
from dsd_lightning.miniature.world import Identity
from dsd_lightning.offline.audit import shares
from dsd_lightning.runs.folder import SUMMARY


def test_the_kept_reference_is_measured_against_the_other_ways(
    tiny_base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "metrics.json"
    few = ["--steps", "2", "--size", "32", "--batch", "1", "--repeats", "1", "--json", str(file)]
    assert kept_reference.main([*few, f"base.model.path={tiny_base}", "arch.lora.rank=2"]) == 0
    metrics = json.loads(file.read_text())
    ways = {kept_reference.APPENDED, kept_reference.RECOMPUTED, kept_reference.KEPT, kept_reference.NONE}
    assert set(metrics["seconds"]) == ways
    assert all(value > 0 for value in metrics["seconds"].values())
    assert metrics["ratio_to_kept"][kept_reference.KEPT] == 1
    assert metrics["largest_difference_of_kept_and_recomputed"] == 0
    printed = capsys.readouterr().out
    assert all(way in printed for way in ways)


def test_a_wrong_setting_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert kept_reference.main([f"base.model.path={tmp_path}"]) == 2
    assert "transformer" in capsys.readouterr().err


def test_the_documented_step_caches_are_the_committed_ones() -> None:
    metrics = json.loads((ROOT / "benchmarks" / "results" / "step_caches.json").read_text())
    rows = [line for line in step_caches.table(metrics).splitlines() if line.startswith("|")]
    text = (ROOT / "docs" / "use.md").read_text()
    assert len(rows) > 8
    assert "\n".join(rows) in text
    assert f"`--pairs {metrics['pairs']}`" in text


def test_step_caches_are_measured_in_time_operations_and_quality(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "metrics.json"
    names = ["none", "steps:1", "first_block:1000"]
    assert step_caches.main(["--pairs", "2", "--steps", "3", "--settings", *names, "--out", str(file)]) == 0
    settings = json.loads(file.read_text())["settings"]
    assert list(settings) == names
    assert settings["none"]["operations"] == settings["none"]["seconds"]["ratio"] == 1
    assert settings["steps:1"]["operations"] == pytest.approx(1 / (2 + 2), rel=1e-3)  # the third step is guided
    assert settings["steps:1"]["operations"] < settings["first_block:1000"]["operations"] < 1
    assert all(0 <= each["identity_accuracy"] <= 1 and each["seconds"]["low"] > 0 for each in settings.values())
    assert settings["none"]["rms_difference"] == 0 < settings["first_block:1000"]["rms_difference"]
    printed = capsys.readouterr().out
    assert "| no cache, 1 steps | 0.25 |" in printed
    assert step_caches.main(["--settings", "mag:1"]) == 2
    assert "step_cache=mag is unknown" in capsys.readouterr().err


def test_a_training_step_is_measured_against_the_same_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    few = random_models.SHAPES["small"] | {"num_layers": 1, "num_single_layers": 2}
    monkeypatch.setitem(random_models.SHAPES, "small", few)
    file = tmp_path / "metrics.json"
    training_step.main(["--batch", "1", "--rounds", "3", "--rank", "4", "--device", "cpu", "--out", str(file)])
    metrics = json.loads(file.read_text())
    assert metrics == json.loads(capsys.readouterr().out)
    assert {"device", "versions", "commit", "threads"} <= metrics.keys()
    assert all(each["rounds"] == 3 and each["median"] > 0 for each in metrics["seconds_a_step"].values())
    # Otherwise the ratio would say nothing.
    assert metrics["tflop_a_pair"]["ours"] == pytest.approx(metrics["tflop_a_pair"]["theirs"], rel=0.02)


def test_sampling_is_measured_against_the_same_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    few = random_models.SHAPES["small"] | {"num_layers": 1, "num_single_layers": 2}
    monkeypatch.setitem(random_models.SHAPES, "small", few)
    file = tmp_path / "metrics.json"
    generation.main(
        ["--batch", "1", "--rounds", "3", "--steps", "2", "--rank", "4", "--device", "cpu", "--out", str(file)]
    )
    metrics = json.loads(file.read_text())
    assert all(each["rounds"] == 3 and each["median"] > 0 for each in metrics["seconds_an_image"].values())
    assert metrics["tflop_an_image"]["ours"] == pytest.approx(metrics["tflop_an_image"]["theirs"], rel=0.02)


@pytest.mark.parametrize("checkpointing", ["none", "all"])
def test_the_peak_of_a_step_is_the_planned_one(
    checkpointing: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    few = random_models.SHAPES["small"] | {"num_layers": 1, "num_single_layers": 2}
    monkeypatch.setitem(random_models.SHAPES, "small", few)
    file = tmp_path / "metrics.json"
    options = ["--half", "--batch", "2", "--rank", "4", "--device", "cpu", "--out", str(file)]
    peak_memory.main([*options, "--gradient-checkpointing", checkpointing])
    metrics = json.loads(file.read_text())
    assert metrics["peak_gib"] > 0
    assert metrics["peak_over_planned"] == pytest.approx(1, abs=0.1)


def test_what_the_fused_layers_save_is_measured_under_autocast(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    few = random_models.SHAPES["small"] | {"num_layers": 1, "num_single_layers": 2}
    monkeypatch.setitem(random_models.SHAPES, "small", few)
    file = tmp_path / "metrics.json"
    training_step.main(["--batch", "1", "--rounds", "3", "--half", "--device", "cpu", "--out", str(file)])
    metrics = json.loads(file.read_text())
    assert set(metrics["seconds_a_step"]) == {"ours", "theirs", "stock layers"}
    assert "ours_over_stock layers" in metrics
    kept = metrics["kept_bytes_a_pair"]
    assert kept["ours"] < 0.85 * kept["stock layers"]
    assert capsys.readouterr().out


@pytest.mark.parametrize("alone", [[], ["--no-callbacks"]])
def test_the_trainer_is_measured_against_the_same_steps(
    alone: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    few = random_models.SHAPES["small"] | {"num_layers": 1, "num_single_layers": 1}
    monkeypatch.setitem(random_models.SHAPES, "small", few)
    modules: list[Any] = []
    monkeypatch.setattr(
        trainer, "module_of", lambda *given: modules.append(random_models.module_of(*given)) or modules[-1]
    )
    file = tmp_path / "metrics.json"
    trainer.main(["--batch", "1", "--rounds", "3", "--rank", "2", "--device", "cpu", "--out", str(file), *alone])
    metrics = json.loads(file.read_text())
    assert all(each["rounds"] == 3 and each["median"] > 0 for each in metrics["seconds_a_step"].values())
    # Otherwise the ratio would say nothing: both made as many of the same steps.
    bare, trained = (dict(each.architecture.trainable()) for each in modules)
    assert all(torch.equal(value, trained[name]) for name, value in bare.items())


def test_a_checkpoint_holds_little_more_than_its_values(tmp_path: Path) -> None:
    file = tmp_path / "metrics.json"
    checkpoint.main(["--rounds", "2", "--out", str(file)])
    metrics = json.loads(file.read_text())
    assert 1 < metrics["bytes_over_values_moments_and_ema"] <= 1.02
    assert all(each["median"] > 0 for each in metrics["seconds"].values())


@pytest.mark.parametrize("kind", grid_splitting.KINDS)
def test_no_grid_is_cut_wrongly(kind: str) -> None:
    outcomes = grid_splitting.measure(kind, 20)
    assert outcomes.total() == 20
    assert outcomes["wrong"] == 0
    assert outcomes["right"] >= grid_splitting.LEAST_RIGHT.get(kind, 0) * 20
    assert not (kind.startswith("no grid") and outcomes["right"]), "what is no grid has no right cut"


def test_other_seeds_give_other_grids_and_the_same_seed_the_same() -> None:
    first, again, other = (grid_splitting.grid_of("gutters", 0, seed)[0] for seed in (0, 0, 1))
    assert first.tobytes() == again.tobytes() != other.tobytes()


def test_a_ratio_comes_with_an_interval_that_holds_it() -> None:
    estimate = ratio([2.0, 2.2, 1.8, 2.0, 2.1], [1.0, 1.0, 1.0, 1.0, 1.0])
    assert estimate["ratio"] == 2.0
    assert 1.8 <= estimate["low"] <= 2.0 <= estimate["high"] <= 2.2


def test_reading_is_measured_three_ways(tmp_path: Path) -> None:
    file = tmp_path / "metrics.json"
    loader.main(["--size", "64", "--pairs", "8", "--batch", "4", "--rounds", "3", "--out", str(file)])
    metrics = json.loads(file.read_text())
    assert set(metrics["pairs_a_second"]) == {"encodings", "images", "webdataset"}
    assert all(each > 0 for each in metrics["pairs_a_second"].values())
    for name in ("encodings_over_images", "images_over_webdataset"):
        assert 0 < metrics[name]["low"] <= metrics[name]["ratio"] <= metrics[name]["high"]


PLAN = """
out: x
steps:
  measured:
    command: -c "import json, sys; json.dump(dict(share=0.75), open(sys.argv[1], 'w'))" {folder}/measured.json
    result: {folder}/measured.json
  broken: {{command: -c "raise SystemExit(3)", result: {folder}/broken.json}}
  dependent: {{command: -c "pass", result: {folder}/dependent.json, needs: [broken]}}
claims:
  - paper: "1"
    claim: high
    values: {{a: {{file: {folder}/measured.json, path: [share], count: 100}}}}
    agrees: {{least: [a, 0.5]}}
    steps: [measured]
  - paper: "2"
    claim: open
    values: {{a: {{file: {folder}/broken.json, path: [share]}}}}
    agrees: {{least: [a, 0.5]}}
"""


def test_reproduction_goes_on_past_a_failure_and_fills_what_was_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reproduce, "TABLE", tmp_path / "table.md")
    monkeypatch.setattr(reproduce, "RESULTS", tmp_path / "results.json")
    plan = tmp_path / "plan.yaml"
    plan.write_text(PLAN.format(folder=tmp_path))
    for _ in range(2):  # the second time what is done is not run again
        assert reproduce.main(["--plan", str(plan), "--out", str(tmp_path)]) == 1
    rows = (tmp_path / "table.md").read_text().splitlines()[-2:]
    today = datetime.now(UTC).date().isoformat()
    command = "`python -m benchmarks.reproduce --only measured`"
    assert rows == [
        f"| 1 | high | a: 0.750 [0.657, 0.825] | yes | {today} | {command} |",
        "| 2 | open | not measured yet | — |  |  |",
    ]
    steps, _ = reproduce.read_plan(plan, str(tmp_path))
    assert reproduce.run_steps(steps, tmp_path / "logs") == ["broken", "dependent"]

    # Where its result file is absent, a row keeps the values that were recorded, until they are measured again.
    measured = tmp_path / "measured.json"
    measured.rename(tmp_path / "elsewhere.json")
    assert reproduce.main(["--plan", str(plan), "--out", str(tmp_path), "--table"]) == 0
    assert (tmp_path / "table.md").read_text().splitlines()[-2:] == rows
    measured.write_text('{"share": 0.5}')
    assert reproduce.main(["--plan", str(plan), "--out", str(tmp_path), "--table"]) == 0
    assert "| high | a: 0.500 [" in (tmp_path / "table.md").read_text()


def test_a_run_that_was_stopped_early_is_no_result(tmp_path: Path) -> None:
    step = reproduce.Step("run", "train.py", tmp_path / SUMMARY)
    for summary, is_done in (({"finished": False, "steps": 181}, False), ({"finished": True, "steps": 1000}, True)):
        (tmp_path / SUMMARY).write_text(json.dumps(summary))
        assert step.done is is_done


def test_every_claim_of_the_reproduction_can_be_read_and_names_its_steps() -> None:
    steps, claims = reproduce.read_plan(reproduce.PLAN, "outputs/reproduction")
    names = {step.name for step in steps}
    assert all(set(step.needs) <= names for step in steps)
    assert all(set(claim.get("steps", ())) <= names for claim in claims)
    sources = [source for claim in claims for source in claim.get("values", {}).values()]
    audited = shares([Record("0-0", {"same": True, "confidence": None})], {"0-0": "yes"}, [Identity(0, 0, 1, 0, 0, 0)])
    for source in sources:
        if source["file"].endswith("labels/oracle.json"):
            assert source["path"][0] in audited
            assert source.get("interval", ["intervals"])[-1] in {"intervals", *audited["intervals"]}
        if source["file"].endswith("both.csv"):
            assert source["path"][1] in {f"estimate={measure}" for measure in MEASURES}
    assert len({claim["claim"] for claim in claims}) == len(claims), "results are recorded by the claim's text"
    assert table(claims, measure(claims, {})).count("\n| ") == len(claims) + 1


def test_the_committed_table_is_that_of_the_committed_values() -> None:
    _, claims = reproduce.read_plan(reproduce.PLAN, "absent")
    results = json.loads((ROOT / reproduce.RESULTS).read_text())
    assert (ROOT / reproduce.TABLE).read_text() == table(claims, measure(claims, results))


@pytest.mark.parametrize(
    ("larger", "smaller", "verdict"),
    [((0.9, 0.8, 1.0), (0.5, 0.4, 0.6), "yes"), ((0.5, 0.4, 0.6), (0.9, 0.8, 1.0), "no"),
     ((0.6, 0.4, 0.8), (0.5, 0.3, 0.7), "not distinguished"), ((0.9,), (0.5, 0.4, 0.6), "not distinguished")],
)  # fmt: skip
def test_claims_agree_where_intervals_are_apart(
    larger: tuple[float, ...], smaller: tuple[float, ...], verdict: str
) -> None:
    values = {"a": Value(*larger), "b": Value(*smaller)}
    assert agreement({"greater": ["a", "b"]}, values) == verdict


@pytest.mark.parametrize(
    ("difference", "verdict"),
    [((0.1, 0.05, 0.15), "yes"), ((-0.1, -0.15, -0.05), "no"), ((0.1, -0.05, 0.2), "not distinguished"),
     ((0.1,), "not distinguished")],
)  # fmt: skip
def test_a_difference_agrees_where_its_interval_excludes_the_bound(difference: tuple[float, ...], verdict: str) -> None:
    assert agreement({"above": ["a", 0]}, {"a": Value(*difference)}) == verdict


def test_the_committed_values_of_the_public_code_are_ours() -> None:
    results = json.loads((Path(checkpoint.__file__).parent / "results" / "published_metrics.json").read_text())
    assert Comparison(results["compared"]).failed == []
    assert len(results["compared"]) >= 44
    assert results["tolerance"] == TOLERANCE == 1e-5
    assert set(results["code"]) == set(CODE)
    for name, code in results["code"].items():
        assert len(code["commit"]) == 40
        assert not code["changed"]
        assert set(code["sha256"]) == set(CODE[name])
    for what in (
        "DreamBench++ DINO of each image",
        "DreamBench DINO of each pair",
        "CSD embeddings",
        "ViStoryBench occm of",
        "ViStoryBench cids_cross_mean of each story, arcface",
        "Grounding DINO, cut-outs",
    ):
        assert any(name.startswith(what) for name in results["compared"])


def test_what_differs_from_the_public_code_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    compared = Comparison({})
    compared.numbers("near", "x.py", [0.5, 0.25], [0.5, 0.250001])
    compared.numbers("far", "x.py", [0.5], [0.5001])
    compared.numbers("none", "x.py", [float("nan")], [0.5])
    compared.equal("same", "x.py", [{"a": 1}], [{"a": 1}])
    compared.equal("other", "x.py", [1, 2], [1, 3])
    assert compared.failed == ["far", "none", "other"]
    assert "near" in capsys.readouterr().err
    plain = [{"role": "system", "content": "rate"}]
    assert reply_to(plain) == reply_to(in_parts(plain))
    assert set(COMPARED) == {"csd", "vistorybench", "faces", "grounding_dino", "dreambench", "dreambench_plus"}
