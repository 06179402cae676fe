"""Shows that scores are combined as published, that intervals cover the truth, and that unlike rows are refused."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from dsd_lightning.evaluation.errors import CoverageTooLow, EvaluationError
from dsd_lightning.evaluation.judging.judgements import Judgement
from dsd_lightning.evaluation.samples.benchmark import DREAMBENCHPP_KINDS
from dsd_lightning.evaluation.scores import published
from dsd_lightning.evaluation.scores.aggregate import PROMPTS_OF, SUBJECTS_OF, Rule, overall_of_values
from dsd_lightning.evaluation.scores.comparison import compare
from dsd_lightning.evaluation.scores.estimates import Scores, collect, estimates
from dsd_lightning.evaluation.scores.formats import to_csv, to_html, to_latex, to_markdown, to_text
from dsd_lightning.evaluation.scores.tables import tables

# --- Published estimates.


def test_the_sample_rule_reproduces_the_whole_leaderboard() -> None:
    rows = published.leaderboard()
    assert len(rows) == 7
    for row in rows:
        cp, pf = published.leaderboard_values(row)
        values = overall_of_values(cp, SUBJECTS_OF, "sample"), overall_of_values(pf, PROMPTS_OF, "sample")
        printed = [float(row.required_text(name)) for name in ("cp_overall", "pf_overall", "cp_pf")]
        assert [*values, values[0] * values[1]] == pytest.approx(printed, abs=0.001 + 1e-9)


@pytest.mark.parametrize(("method", "rule"), [("Ours", "as-published"), ("Emu2", "category")])
def test_rows_of_the_paper_follow_the_rules_that_the_docs_name(method: str, rule: Rule) -> None:
    row = next(row for row in published.table1() if row.required_text("method") == method)
    by_category = {name: float(row.required_text(f"cp_{name}")) for name in ("animal", "human", "object")}
    printed = float(row.required_text("cp_overall"))
    assert overall_of_values(by_category, SUBJECTS_OF, rule) == pytest.approx(printed, abs=0.001 + 1e-9)
    other: Rule = "category" if rule == "as-published" else "as-published"
    assert overall_of_values(by_category, SUBJECTS_OF, other) != pytest.approx(printed, abs=0.001)


# --- Estimates of judgements.


def judgements(
    score: Callable[[str, int, str], int | None], method: str = "ours", served: str = "judge-1", rubric: str = "r"
) -> list[Judgement]:
    """Return judgements of a small DreamBench++: (category, prompt, measure) -> score, None for a failure."""
    result = []
    for category, count in SUBJECTS_OF.items():
        for number in range(count // 5):
            for prompt, kind in enumerate(DREAMBENCHPP_KINDS):
                for measure in ("cp", "pf"):
                    value = score(category, prompt, measure)
                    subject, failure = f"{category}_{number:02d}", None if value is not None else "unparsable:no_score"
                    question = (method, subject, category, prompt, kind, 0, measure, 0, "image", "reference", "text")
                    result.append(Judgement(*question, rubric, "requested", served, value, failure))
    return result


BY_CATEGORY = {"animal": 4, "human": 0, "object": 2, "style": 1}
BY_KIND = {"photorealistic": 4, "style": 1, "imaginative": 2}


def by_group(category: str, prompt: int, measure: str) -> int:
    return BY_CATEGORY[category] if measure == "cp" else BY_KIND[DREAMBENCHPP_KINDS[prompt]]


@pytest.mark.parametrize("rule", ["sample", "category", "as-published"])
def test_scores_and_published_estimates_go_through_the_same_rules(rule: Rule) -> None:
    computed = estimates(collect(judgements(by_group), rule))
    cp = overall_of_values({name: value / 4 for name, value in BY_CATEGORY.items()}, SUBJECTS_OF, rule)
    pf = overall_of_values({name: value / 4 for name, value in BY_KIND.items()}, PROMPTS_OF, rule)
    assert computed["cp"].value == pytest.approx(cp)
    assert computed["pf"].value == pytest.approx(pf)
    assert computed["cp_pf"].value == pytest.approx(cp * pf)
    assert {name: computed[f"cp/{name}"].value for name in BY_CATEGORY} == {n: v / 4 for n, v in BY_CATEGORY.items()}
    without_style = rule == "as-published"
    assert computed["cp"].scored == (26 if without_style else 30) * 9
    assert computed["pf"].scored == 30 * (6 if without_style else 9)


def test_a_failure_is_counted_as_missing_and_not_as_zero() -> None:
    complete = estimates(collect(judgements(lambda *_: 3), "sample"))["cp"]
    partial = estimates(collect(judgements(lambda c, p, m: None if p == 0 else 3), "sample"))["cp"]
    assert (complete.value, complete.scored, complete.missing) == (0.75, 270, 0)
    assert (partial.value, partial.scored, partial.missing) == (0.75, 240, 30)
    assert str(partial) == "0.750 [no interval] (30 subjects, 240 images, 240 judged, 30 missing)"


def test_repeats_are_averaged_before_samples_are() -> None:
    judged = judgements(lambda *_: 4)
    more = [replace(each, repeat=1, score=0) for each in judged if each.subject == "animal_00"]
    estimate = estimates(collect(judged + more, "sample"))["cp"]
    assert estimate.value == pytest.approx((29 + 0.5) / 30)
    assert estimate.scored == 279


def test_too_many_failures_make_no_estimates() -> None:
    row = collect(judgements(lambda c, p, m: None if p == 0 and m == "pf" else 3), "sample")
    row.require_coverage(0.85)
    with pytest.raises(CoverageTooLow, match=r"pf: 88\.9% .*unparsable:no_score 30"):
        row.require_coverage(0.9)


def noisy(quality: float, seed: int) -> Callable[[str, int, str], int]:
    rng = np.random.default_rng(seed)
    return lambda *_: int(rng.binomial(4, quality))


def test_intervals_cover_the_truth_about_as_often_as_they_say() -> None:
    hits = 0
    for seed in range(40):
        one = estimates(collect(judgements(noisy(0.6, seed)), "sample"))["cp_pf"]
        hits += one.low <= 0.36 <= one.high
        assert one.low < one.value < one.high
    assert 33 <= hits <= 40


def test_a_comparison_distinguishes_a_difference_from_chance() -> None:
    good = collect(judgements(noisy(0.7, 0), "good"), "sample")
    bad = collect(judgements(noisy(0.5, 1), "bad"), "sample")
    other = collect(judgements(noisy(0.7, 2), "other"), "sample")
    clear, same = compare(good, bad)[0], compare(good, other)[0]
    assert clear.p < 0.001
    assert clear.low > 0
    assert same.p > 0.05
    assert same.low < 0 < same.high
    assert compare(good, good)[0].p == 1
    assert compare(bad, good)[0].difference == -clear.difference


@pytest.mark.parametrize(
    ("other", "named"),
    [
        (collect(judgements(by_group, "b", served="judge-2"), "sample"), "judge-1, judge-2"),
        (collect(judgements(by_group, "b"), "category"), "category, sample"),
        (collect(judgements(by_group, "b", rubric="other words"), "sample"), "rubrics"),
    ],
)
def test_rows_of_different_judges_rules_or_rubrics_are_refused(other: Scores, named: str) -> None:
    mine = collect(judgements(by_group), "sample")
    for together in (lambda: tables([mine, other]), lambda: compare(mine, other)):
        with pytest.raises(EvaluationError, match=named):
            together()


def test_published_rows_are_never_in_the_table_of_another_judge() -> None:
    ours, theirs = tables([collect(judgements(by_group), "sample")])
    assert (ours.judge, theirs.judge) == ("judge-1", published.JUDGE)
    assert (len(ours.rows), len(theirs.rows)) == (1, 7)
    assert ours.columns == theirs.columns
    _, plain, *_ = tables([collect(judgements(by_group), "as-published")])
    assert (plain.judge, plain.rule, len(plain.rows)) == (published.JUDGE, "as-published", 8)
    assert [heading for _, heading in plain.columns][-3:] == ["Imag.", "Overall", "CP x PF"]


def test_every_format_shows_every_estimate_with_its_counts() -> None:
    row = collect(judgements(lambda c, p, m: None if p == 0 and c == "human" else by_group(c, p, m), "a_b"), "sample")
    judged = tables([row])
    for text in (to_text(judged), to_markdown(judged), to_html(judged), to_latex(judged)):
        assert all(size in text for size in ("30 subjects", "266 images", "266 judged", "4 missing"))
        assert "judge-1" in text
        assert "Rule: sample" in text
        assert "0.510" in text
    assert r"a\_b" in to_latex(judged)
    lines = to_csv([row]).splitlines()
    assert len(lines) == 1 + 4 + 1 + 3 + 1 + 1
    assert next(line for line in lines if line.startswith("a_b,cp,")).split(",")[5:9] == ["30", "266", "266", "4"]
