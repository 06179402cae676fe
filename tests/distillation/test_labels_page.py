"""A person labels pairs by keys, takes an answer back, goes on later, and saves what the report reads; also on a phone."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from rehearsal_server import RehearsalServer
from support.distill_runs import CAPTIONS, captions_file, rule, run_here
from support.web.browser import CHROMIUM, Page

from dsd_lightning.distillation.judge_quality import read_labels
from dsd_lightning.distillation.labels import prepare
from dsd_lightning.distillation.report import write_report
from dsd_lightning.distillation.runner import STAGES
from dsd_lightning.shards import PairShards
from dsd_lightning.shards.contact_sheet import write_contact_sheet

PHONE = 390
"""Width of a window, pixels."""


@pytest.mark.long
@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium: apt-get install chromium")
def test_pairs_are_labelled_by_keys_with_undo_and_kept_over_a_pause(tmp_path: Path) -> None:
    run, downloads = tmp_path / "run", tmp_path / "downloads"
    downloads.mkdir()
    with RehearsalServer(rule) as server:
        samples = run_here(run, captions_file(tmp_path, CAPTIONS[:3]), server)
    page = prepare(run, 4, "ada", seed=0)
    ids = [line.partition(",")[0] for line in (run / "labels" / "ada.csv").read_text().splitlines()[1:]]
    with Page(page.as_uri(), tmp_path / "profile", downloads) as person:
        person.resize(PHONE)
        assert person.fits()
        assert person.evaluate("[...document.images].every(each => each.complete && each.naturalWidth > 0)")
        for key in "yna":
            person.press(key)
        person.press("u")
        assert person.evaluate("count.textContent") == "pair 3 of 4, 2 answered"
        person.press("n")
        assert person.evaluate("count.textContent") == "pair 4 of 4, 3 answered"
        person.until_stored()
        assert all(url.startswith(("file:", "data:", "about:", "blob:")) for url in person.requested)
    with Page(page.as_uri(), tmp_path / "profile", downloads) as person:
        assert person.evaluate("count.textContent") == "pair 4 of 4, 3 answered"
        person.press("s")
        deadline = time.monotonic() + 60
        while not (files := list(downloads.glob("*.csv"))) and time.monotonic() < deadline:
            time.sleep(0.1)
        assert "1 pairs are not answered" in person.evaluate("saved.textContent")
    assert read_labels(files[0]) == dict(zip(ids, ("yes", "no", "no"), strict=False))
    report = write_report(run, STAGES, samples, None)
    sheet = write_contact_sheet(PairShards(run / "shards" / "train"), tmp_path / "sheet.html", 4)
    for written in (report, sheet):
        with Page(written.as_uri(), tmp_path / "other", downloads) as person:
            person.resize(PHONE)
            assert person.fits(), written
