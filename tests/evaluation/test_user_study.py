"""Shows that people can rate blind, by keys, offline and with pauses, and that their files become the right means."""

from __future__ import annotations

import json
import math
import time
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf
from PIL import Image
from support.web.browser import CHROMIUM, Page

from dsd_lightning.evaluation.errors import EvaluationError
from dsd_lightning.evaluation.samples.benchmark import folder
from dsd_lightning.evaluation.samples.result_folder import Samples
from dsd_lightning.evaluation.user_study.rating_tables import read_pages
from dsd_lightning.evaluation.user_study.ratings import opinions
from dsd_lightning.evaluation.user_study.study import CRITERIA, KEY, make_page, score

METHODS = ("a_good_method", "a_bad_method")


@pytest.fixture
def page(tmp_path: Path) -> Path:
    """Return a study of two methods with two images each; a prompt tries to break out of the page."""
    (tmp_path / "benchmark").mkdir()
    Image.new("RGB", (20, 20), (9, 9, 9)).save(tmp_path / "benchmark" / "cat.png")
    (tmp_path / "benchmark" / "cat.txt").write_text("on the </script><b>moon\nin a hat\nasleep")
    cases = folder(tmp_path / "benchmark").cases()
    methods = [Samples(tmp_path / name) for name in METHODS]
    for shade, samples in enumerate(methods):
        for case in cases:
            samples.write(
                case, Image.new("RGB", (20, 20), (100 * shade, 50 * case.prompt.index, 7)), Image.new("RGB", (9, 9))
            )
    return make_page(methods, cases, 2, 0, tmp_path / "study")


def content(page: Path) -> dict[str, Any]:
    text = page.read_text().partition('type="application/json">')[2].partition("</script>")[0]
    values: dict[str, Any] = json.loads(text)
    return values


def test_the_page_is_blind_shuffled_self_contained_and_resolved_by_the_key(page: Path) -> None:
    text = page.read_text()
    assert not any(name in text for name in METHODS)
    assert "http://" not in text
    assert "https://" not in text
    key = json.loads(page.with_name(KEY).read_text())
    items = content(page)["items"]
    assert {each["id"] for each in items} == set(key["images"])
    assert sorted(each["method"] for each in key["images"].values()) == sorted(METHODS * 2)
    assert len({each["case"] for each in key["images"].values()}) == 2


def saved(page: Path, rater: str, scores: dict[str, int]) -> Path:
    """Write the file of a rater who gives each method the same scores."""
    key = json.loads(page.with_name(KEY).read_text())
    ratings = {name: dict.fromkeys(CRITERIA, scores[each["method"]]) for name, each in key["images"].items()}
    file = page.with_name(f"{rater}.json")
    file.write_text(json.dumps({"study": key["study"], "rater": rater, "ratings": ratings}))
    return file


def test_raters_files_become_means_and_agreement(page: Path) -> None:
    good, bad = METHODS
    files = [saved(page, "ann", {good: 5, bad: 2}), saved(page, "bob", {good: 4, bad: 1})]
    by_method = {(each.method, each.criterion): each for each in opinions(*read_pages(files, page.with_name(KEY)))}
    assert (by_method[good, "cp"].mean, by_method[good, "cp"].std, by_method[good, "cp"].rater_std) == (4.5, 0.5, 0.5)
    assert by_method[bad, "creativity"].mean == 1.5
    config = OmegaConf.create(
        {
            "ratings": [str(file) for file in files],
            "key": str(page.with_name(KEY)),
            "overall": False,
            "level": "ordinal",
            "out": str(page.parent / "tables"),
        }
    )
    printed = score(config)
    assert "4.500 [no interval]" in printed  # two raters say next to nothing of all raters: Student's t is 12.7
    assert "Krippendorff's alpha (ordinal) over all methods: cp " in printed
    assert (page.parent / "tables" / "opinions.csv").read_text().count("\n") == 1 + 2 * 3


def test_what_nobody_rated_is_missing(page: Path) -> None:
    key = page.with_name(KEY)
    files = [saved(page, rater, dict.fromkeys(METHODS, 3)) for rater in ("ann", "bob")]
    unrated = next(name for name, each in json.loads(key.read_text())["images"].items() if each["method"] == METHODS[0])
    for file in files:
        content = json.loads(file.read_text())
        del content["ratings"][unrated]
        file.write_text(json.dumps(content))
    by_method = {each.method: each for each in opinions(*read_pages(files, key)) if each.criterion == "cp"}
    assert {name: (each.ratings, each.missing, each.items) for name, each in by_method.items()} == {
        METHODS[0]: (2, 2, 1),
        METHODS[1]: (4, 0, 2),
    }


def test_files_of_other_studies_and_impossible_ratings_are_refused(page: Path) -> None:
    file = saved(page, "ann", dict.fromkeys(METHODS, 3))
    key = page.with_name(KEY)
    with pytest.raises(EvaluationError, match="also in"):
        read_pages([file, file], key)
    content = json.loads(file.read_text())
    first = next(iter(content["ratings"]))
    content["ratings"][first]["cp"] = 6
    file.write_text(json.dumps(content))
    with pytest.raises(EvaluationError, match="cp 6 of"):
        read_pages([file], key)
    for wrong, message in (
        (json.dumps({**content, "study": "another"}), "another"),
        (json.dumps({**content, "ratings": [1]}), r"ratings=\[1\]"),
        ("[]", "a JSON object"),
        ("{", "is not JSON"),
    ):
        file.write_text(wrong)
        with pytest.raises(EvaluationError, match=message):
            read_pages([file], key)


@pytest.mark.long
@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium: apt-get install chromium")
def test_a_person_rates_by_keys_offline_pauses_and_saves(page: Path, tmp_path: Path) -> None:
    downloads = tmp_path / "downloads"
    downloads.mkdir()
    items = content(page)["items"]
    with Page(page.as_uri(), tmp_path / "profile", downloads) as person:
        person.resize(390)
        assert person.fits()
        assert person.evaluate("document.querySelectorAll('img').length") == 2
        assert person.evaluate("[...document.images].every(each => each.complete && each.naturalWidth > 0)")
        for key in "543":
            person.press(key)
        person.press("ArrowRight")
        person.press("ArrowDown")
        person.press("2")
        person.evaluate("document.getElementById('save').click()")
        assert "name or number" in person.evaluate("document.getElementById('saved').textContent")
        person.evaluate("document.activeElement.blur()")
        assert person.evaluate("count.textContent") == "image 2 of 4, 1 rated"
        person.until_stored()
        assert all(url.startswith(("file:", "data:", "about:")) for url in person.requested), person.requested
    with Page(page.as_uri(), tmp_path / "profile", downloads) as person:
        assert person.evaluate("document.querySelectorAll('input[type=radio]:checked').length") == 1
        person.evaluate("rater.value = 'Ann 1'; rater.dispatchEvent(new Event('input'))")
        person.press("ArrowLeft")
        person.press("s")
        deadline = time.monotonic() + 60
        while not (files := list(downloads.glob("*.json"))) and time.monotonic() < deadline:
            time.sleep(0.1)
        assert "3 images are not fully rated" in person.evaluate("document.getElementById('saved').textContent")
    saved_file = json.loads(files[0].read_text())
    assert saved_file["rater"] == "Ann 1"
    assert saved_file["ratings"] == {items[0]["id"]: {"cp": 5, "pf": 4, "creativity": 3}, items[1]["id"]: {"pf": 2}}
    ratings, scale = read_pages(files, page.with_name(KEY))
    assert sum(not math.isnan(each.score) for each in ratings) == 4
    assert scale == (1.0, 5.0)
