"""Runs make the right shards, whatever happens on the way: over a real local server, with its faults."""

from __future__ import annotations

import errno
import json
import os
import re
from pathlib import Path

import pytest
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from rehearsal_server import RehearsalServer
from rehearsal_server.script import Asked, Fault
from support.distill_runs import (
    CAPTIONS,
    EMPTY,
    arguments,
    captions_file,
    compose_distill,
    rejected,
    rule,
    run_here,
    samples,
    tars,
)

from dsd_lightning.agents import AuthenticationFailed, BudgetExceeded
from dsd_lightning.cli.errors import message_for_user
from dsd_lightning.distillation.command import distill
from dsd_lightning.distillation.expectation import expect, kept_shares, outlook
from dsd_lightning.distillation.records import DistillationError, NothingKept
from dsd_lightning.distillation.report import write_report
from dsd_lightning.distillation.runner import STAGES
from dsd_lightning.distillation.store import Store

GRIDS = len([caption for caption in CAPTIONS if "owl" not in caption])
"""Grids of two by two: the crayons generate three columns for owls."""


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a run that nothing disturbed."""
    folder = tmp_path_factory.mktemp("undisturbed")
    with RehearsalServer(rule) as server:
        run_here(folder / "run", captions_file(folder), server)
    return folder / "run"


def test_captions_become_shards(undisturbed: Path) -> None:
    assert list(rejected(undisturbed, "filter")) == ["no_subject"]
    assert {reason: len(ids) for reason, ids in rejected(undisturbed, "split").items()} == {"not_two_by_two": 3}
    by_split = samples(undisturbed)
    keys = [key for split in by_split.values() for key, *_ in split]
    kept = sum(1 for _ in (undisturbed / "caption").glob("part-*/records.jsonl") for _ in _.open())
    assert len(keys) == len(set(keys)) == 2 * kept > 0
    assert kept + len(rejected(undisturbed, "verify")["not_identical"]) == 6 * GRIDS


def test_no_subject_is_in_both_sets(undisturbed: Path) -> None:
    by_split = samples(undisturbed)
    assert set(by_split) == {"train", "validation"}
    pairs = {split: {key.partition("-")[0] for key, *_ in rows} for split, rows in by_split.items()}
    assert pairs["train"].isdisjoint(pairs["validation"])


def test_a_finished_run_makes_no_call_and_no_image(undisturbed: Path) -> None:
    before = tars(undisturbed)
    with RehearsalServer(rule) as server:
        run_here(undisturbed, undisturbed.parent / "captions.txt", server)
        assert server.counts["asked"] == 0
    assert tars(undisturbed) == before


def test_another_threshold_asks_nothing_and_changes_what_is_kept(undisturbed: Path, tmp_path: Path) -> None:
    root = f"shards.root={tmp_path / 'strict'}"
    with RehearsalServer(rule) as server:
        captions = undisturbed.parent / "captions.txt"
        strict = run_here(undisturbed, captions, server, "stages.verify.least_confidence=0.7", root)
        again = run_here(undisturbed, captions, server, f"shards.root={tmp_path / 'again'}")
        assert server.counts["asked"] == 0
    assert 0 < sum(strict.values()) < sum(again.values())


def test_tasks_of_an_array_make_the_same_shards(undisturbed: Path, tmp_path: Path) -> None:
    captions = captions_file(tmp_path)
    with RehearsalServer(rule) as server:
        for task in (1, 0):
            shares = ("executor.tasks=2", f"executor.task={task}")
            assert run_here(tmp_path / "run", captions, server, *shares) == {}
        asked = server.counts["asked"]
        run_here(tmp_path / "run", captions, server)
        assert server.counts["asked"] == asked
    assert tars(tmp_path / "run") == tars(undisturbed)


def test_shards_of_others_are_not_replaced(undisturbed: Path, tmp_path: Path) -> None:
    (tmp_path / "train").mkdir()
    (tmp_path / "train" / "index.json").write_text("precious")
    captions = undisturbed.parent / "captions.txt"
    with RehearsalServer(rule) as server:
        for _ in range(2):
            with pytest.raises(ValueError, match="not of a run"):
                run_here(undisturbed, captions, server, f"shards.root={tmp_path}")
    assert (tmp_path / "train" / "index.json").read_text() == "precious"


PASSING = (
    Fault("slow", first=1, match="`a red cup`", seconds=4.0),
    Fault("rate_limited", first=1, retry_after=0.05, every=3),
    Fault("unavailable", first=1, match="clear subject"),
    Fault("reset", first=1, match="grid of four"),
    Fault("cut", first=1, match="one and the same, only"),
    Fault("malformed", first=1, match="Which character"),
)
"""In this order: a request meets the first that applies, and its repetition none."""


def test_faults_that_pass_leave_no_trace(undisturbed: Path, tmp_path: Path) -> None:
    def answer(asked: Asked) -> str | Fault:
        return next((fault for fault in PASSING if fault.applies(asked)), None) or rule(asked)

    with RehearsalServer(answer) as server:
        run_here(tmp_path / "run", captions_file(tmp_path), server, "agents.llm.timeout=3.0")
        met = server.counts["faults"]
    assert set(met) == {fault.fault for fault in PASSING}
    assert tars(tmp_path / "run") == tars(undisturbed)


LASTING: dict[str, tuple[str, str, str | Fault]] = {
    "`a red dog`": ("filter", "refused", Fault("refusal")),
    "`a blue dog`": ("filter", "unclear_answer", Fault("nonsense")),
    "`a green dog`": ("prompts", "prompt_breaks_rules", "a grid of " + "cat " * 90),
    "`a red cup`": ("filter", "provider_failed", Fault("unavailable")),
}
"""By the caption that it meets: the stage, the reason of the rejection, and what is answered at that stage."""


def test_a_lasting_fault_rejects_its_record_with_the_reason(tmp_path: Path) -> None:
    def answer(asked: Asked) -> str | Fault:
        stage = "filter" if "clear subject" in asked.text else "prompts"
        met = [
            reply
            for caption, (at, _, reply) in LASTING.items()
            if at == stage and any(caption in text for _, text in asked.turns)
        ]
        return met[0] if met else rule(asked)

    few = captions_file(tmp_path, CAPTIONS[:5])
    with RehearsalServer(answer) as server:
        counts = run_here(tmp_path / "run", few, server, "agents.retries.attempts=2", "shards.validation_share=0.0")
        assert counts["train"] > 0
    for stage in ("filter", "prompts"):
        expected = {reason: 1 for at, reason, _ in LASTING.values() if at == stage}
        assert {reason: len(ids) for reason, ids in rejected(tmp_path / "run", stage).items()} == expected
    with RehearsalServer(rule) as server:
        run_here(tmp_path / "run", few, server)
        assert server.counts["asked"] == 0
        run_here(tmp_path / "run", few, server, "retry_failed=true")
        assert server.counts["asked"] > 0
    assert "provider_failed" not in rejected(tmp_path / "run", "filter")


def test_a_yes_and_no_is_asked_again_and_then_rejected(tmp_path: Path) -> None:
    def answer(asked: Asked) -> str | Fault:
        return "Hard to say: yes and no" if "one and the same, only" in asked.text else rule(asked)

    with (
        RehearsalServer(answer) as server,
        pytest.raises(NothingKept, match=r"verify kept none of 6 records \(6 unclear_verdict\)"),
    ):
        run_here(tmp_path / "run", captions_file(tmp_path, CAPTIONS[:1]), server)
    assert {reason: len(ids) for reason, ids in rejected(tmp_path / "run", "verify").items()} == {"unclear_verdict": 6}
    verdicts = [each for each in server.counts["requests"] if each["text"].startswith("Is it one and the same")]
    assert sum(each["asked"] for each in verdicts) == 12


def test_a_stage_that_keeps_nothing_ends_the_run_with_its_reasons_and_a_report(tmp_path: Path) -> None:
    def answer(asked: Asked) -> str | Fault:
        return Fault("unavailable") if "grid of four" in asked.text else rule(asked)

    captions = captions_file(tmp_path, CAPTIONS[:2])
    with RehearsalServer(answer) as server:
        given = arguments(tmp_path / "run", captions, server.url, "agents.retries.attempts=1", "until=prompts")
        with pytest.raises(
            NothingKept, match=r"prompts kept none of 2 records \(2 provider_failed\).*retry_failed=true"
        ) as end:
            distill(compose_distill(*given))
        # A task of an array sees its own partitions alone, and says nothing of the run.
        distill(compose_distill(*given, "partition_size=1", "executor.tasks=2", "executor.task=0"))
    assert f"report    {tmp_path / 'run' / 'report.html'}" in str(end.value)
    assert (tmp_path / "run" / "report.html").is_file()


@pytest.mark.parametrize("more", [[], ["until=prompts"], ["dry_run=true"]])
def test_prompts_without_captions_need_a_writer_that_invents(tmp_path: Path, more: list[str]) -> None:
    given = [f"out={tmp_path / 'run'}", "count=2", "stages.prompts.with_caption=false", *more]
    with pytest.raises((DistillationError, InstantiationException)) as end:
        distill(compose_distill(*given))
    said = message_for_user(end.value)
    assert said is not None
    assert "stages.prompts.with_caption=false" in said
    assert "agents=paper, openai, gemini or local" in said
    assert not list(tmp_path.glob("run/filter/*"))


def test_a_full_disk_leaves_whole_partitions_and_the_run_goes_on(
    undisturbed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, syncs = os.fsync, 0

    def full(descriptor: int) -> None:
        nonlocal syncs
        syncs += "/verify/" in os.readlink(f"/proc/self/fd/{descriptor}")
        if syncs > 4:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(descriptor)

    captions = captions_file(tmp_path)
    with RehearsalServer(rule) as server:
        with monkeypatch.context() as patched:
            patched.setattr(os, "fsync", full)
            with pytest.raises(OSError, match="No space left"):
                run_here(tmp_path / "run", captions, server)
        assert not list((tmp_path / "run").glob("*/*.partial"))
        run_here(tmp_path / "run", captions, server)
    assert tars(tmp_path / "run") == tars(undisturbed)


def priced(model: str, usd: float) -> list[str]:
    price = (
        f"{{model: {model}, input_usd: {usd}, output_usd: {usd}, image_tokens: 100, source: here, date: '2026-01-01'}}"
    )
    return [
        f"agents.{role}.prices={{_target_: dsd_lightning.agents.prices.Prices, models: [{price}], free: false}}"
        for role in ("llm", "vlm")
    ]


def test_a_budget_is_not_crossed_and_a_raised_one_goes_on(undisturbed: Path, tmp_path: Path) -> None:
    captions = captions_file(tmp_path)
    with RehearsalServer(rule, latency=0.01) as server:
        with pytest.raises(BudgetExceeded, match=r"such as agents.budget.budget_usd=\d"):
            run_here(tmp_path / "run", captions, server, *priced("m", 10.0), "agents.budget.budget_usd=0.1")
        ledger = (tmp_path / "run" / "agents" / "spending.jsonl").read_text().splitlines()
        assert 0 < sum(json.loads(line).get("spent_usd", 0.0) for line in ledger) <= 0.1
        run_here(tmp_path / "run", captions, server, *priced("m", 10.0), "agents.budget.budget_usd=null")
        assert all(each["answered"] == 1 for each in server.counts["requests"])
    assert tars(tmp_path / "run") == tars(undisturbed)


def test_no_file_holds_the_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    canary = "sk-canary-0123456789abcdef"
    monkeypatch.setenv("OPENAI_API_KEY", canary)
    wrong = Fault("unauthorized")
    answers = iter([wrong])

    def answer(asked: Asked) -> str | Fault:
        return rule(asked) if "subject" not in asked.text else next(answers, None) or rule(asked)

    with RehearsalServer(answer) as server:
        config = [
            each.replace("agents=local", "agents=openai")
            for each in arguments(tmp_path / "run", captions_file(tmp_path, CAPTIONS[:4]), server.url)
        ]
        config.append("agents.prices.free=true")
        with pytest.raises(AuthenticationFailed, match="401") as failed:
            distill(compose_distill(*config))
        said = str(failed.value) + distill(compose_distill(*config))
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(files) > 20
    assert canary not in said
    assert not [path for path in files if canary.encode() in path.read_bytes()]


def test_a_dry_run_asks_nothing_and_bounds_what_the_run_takes(tmp_path: Path) -> None:
    captions = captions_file(tmp_path)
    with RehearsalServer(rule) as server:
        given = arguments(tmp_path / "run", captions, server.url)
        estimate = distill(compose_distill(*given, "dry_run=true"))
        assert server.counts["asked"] == 0
        run_here(tmp_path / "run", captions, server)
        assert server.counts["asked"] <= int(estimate.splitlines()[-2].split()[1].replace(",", ""))
    assert not (tmp_path / "run" / "report.html").exists()


def test_a_dry_run_says_that_the_budget_ends_the_run_and_which_one_does_not(tmp_path: Path) -> None:
    given = [
        *arguments(tmp_path / "run", captions_file(tmp_path), "http://127.0.0.1:9"),
        "dry_run=true",
        *priced("m", 10.0),
    ]
    said = distill(compose_distill(*given, "agents.budget.budget_usd=0.01"))
    (enough,) = re.findall(
        r"  budget    0\.01 USD, of which 0\.00 are spent: .* agents\.budget\.budget_usd=(\d+) leaves", said
    )
    expected = float(re.findall(r"about ([\d,.]+) USD\n", said)[0])
    assert float(enough) >= expected
    assert "  budget " not in distill(compose_distill(*given, f"agents.budget.budget_usd={enough}"))


def test_a_dry_run_expects_the_calls_and_pairs_of_a_run_whose_shares_it_has(undisturbed: Path, tmp_path: Path) -> None:
    page = write_report(undisturbed, STAGES, {}, None).read_text()
    kept = {stage: sum(each.kept for each in Store(undisturbed).manifests(stage)) for stage in STAGES}
    captions = len([*CAPTIONS, EMPTY])
    assert f">{kept['filter']} of {captions} captions<" in page
    assert f">{kept['prompts']} prompts of {kept['filter']} captions<" in page
    assert f">{kept['verify']} of {6 * kept['split']} pairs<" in page
    assert f">{kept['caption']} pairs of {captions} captions<" in page, "the last row is of the run"
    calls = sum(each.usage.calls for stage in STAGES for each in Store(undisturbed).manifests(stage))
    assert f'<td class="n">{calls:,}</td>' in page.partition('<tr class="total">')[2].partition("</tr>")[0]
    assert "The judge: m-rehearsal." in page
    given = arguments(tmp_path / "run", undisturbed.parent / "captions.txt", "http://127.0.0.1:9")
    config = compose_distill(*given, f"expected.run={undisturbed}")
    at_most = expect(config)
    yields = instantiate(config.expected).measured()
    shares = kept_shares(yields)
    calls = {each.stage: each.estimate.calls * shares[each.stage] for each in at_most}
    calls_made = {stage: sum(each.usage.calls for each in Store(undisturbed).manifests(stage)) for stage in calls}
    for stage in ("filter", "prompts", "verify"):
        assert calls[stage] == pytest.approx(calls_made[stage]), stage
    assert calls["caption"] == pytest.approx(calls_made["caption"], rel=0.2)
    pairs = sum(len(each) for each in samples(undisturbed).values())
    assert f"  pairs     {pairs} to train on" in outlook(config, at_most)
