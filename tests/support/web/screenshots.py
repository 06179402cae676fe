"""Writes the documents' screenshots: every page at 1280 and 390 pixels, of runs on the miniature that it makes first.

    make screenshots                          all; or make screenshots ARGS='labels report'

Runs are kept in outputs/screenshots, and what is there is not made again.
"""

from __future__ import annotations

import io
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from PIL import Image

from dsd_lightning.ui.examples import write_examples
from support.documents import ROOT
from support.web.browser import Page
from support.web.pages import served

HEIGHTS = {1280: 800, 390: 1000}
"""Height of a window of each width, pixels."""

LARGEST = 98_000
"""Bytes of a file."""

OUT = ROOT / "outputs" / "screenshots"

IMAGES = ROOT / "docs" / "images"

RUNS = {
    "pairs/labels/human.html": "OUT={out}/pairs PAIRS=240 TRAIN=plan=true launch/data_run.sh",
    "pairs.html": "python -m dsd_lightning.shards view {out}/pairs/shards/train --out {out}/pairs.html --count 24",
    "scores/samples/ours": "python evaluate.py benchmark.subjects=2 judging=false out={out}/scores",
    "scores/samples/copy_paste": (
        "python evaluate.py benchmark.subjects=2 judging=false out={out}/scores method=copy_paste"
    ),
    "study/study.html": (
        "python evaluate.py study make methods=[{out}/scores/samples/ours,{out}/scores/samples/copy_paste] "
        "benchmark.subjects=2 samples=8 out={out}/study"
    ),
}
"""What is made in `OUT`, and the command that makes it."""

MODEL_PAGE = ("page", "sheet")
"""Screenshots of the model's page: its first and its second tab."""


@dataclass(frozen=True)
class Shown:
    """A page that a command wrote, from which element on it is shown, and which of `RUNS` it needs."""

    file: Path
    needs: tuple[str, ...] = ()
    at: str = "body"


PAGES = {
    "report": Shown(OUT / "pairs" / "report.html", ("pairs/labels/human.html",)),
    "labels": Shown(OUT / "pairs" / "labels" / "human.html", ("pairs/labels/human.html",)),
    "contact_sheet": Shown(OUT / "pairs.html", ("pairs/labels/human.html", "pairs.html")),
    "study": Shown(
        OUT / "study" / "study.html", ("scores/samples/ours", "scores/samples/copy_paste", "study/study.html")
    ),
    "ablation": Shown(ROOT / "docs" / "ablation" / "report.html", at="h2"),
}


def make(name: str) -> None:
    """Run the command of `RUNS` that makes a file, unless it is there."""
    if not (OUT / name).exists():
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        given = RUNS[name].format(out=OUT.relative_to(ROOT))  # pages show the folder
        subprocess.run(["bash", "-xc", given], cwd=ROOT, env={**os.environ, "PATH": path}, check=True)


def save_small(png: bytes, path: Path, end: int) -> None:
    """Write the first `end` lines of a screenshot with as many colours as fit into `LARGEST` bytes.

    Raises:
        ValueError: it is larger with 16 colours, too.
    """
    with Image.open(io.BytesIO(png)) as image:
        shown = image.convert("RGB").crop((0, 0, image.width, min(end, image.height)))
        for colours in (256, 128, 64, 32, 16):
            file = io.BytesIO()
            shown.quantize(colours).save(file, "PNG", optimize=True)
            if file.tell() <= LARGEST:
                path.write_bytes(file.getvalue())
                return
    raise ValueError(f"{path}: {file.tell()} bytes with 16 colours")


def capture(page: Page, name: str, width: int, at: str = "body") -> None:
    """Write what a page shows from an element on, in a window of `width` pixels, as far down as there is something."""
    page.until("[...document.images].every(each => each.loading === 'lazy' || each.complete)")
    page.evaluate(f"scrollTo(0, document.querySelector({at!r}).getBoundingClientRect().top - 16)")
    page.settle()
    assert page.fits(), f"{name}: wider than {width} pixels"
    end = page.evaluate("Math.ceil(document.body.getBoundingClientRect().bottom) + 16")
    save_small(page.screenshot(), IMAGES / f"{name}_{width}.png", end)


@contextmanager
def opened(url: str, width: int) -> Iterator[Page]:
    """Open a page in a window of `width` pixels of a browser without a history."""
    with TemporaryDirectory() as profile, Page("about:blank", Path(profile), Path(profile)) as page:
        page.resize(width, HEIGHTS[width])
        page.visit(url)
        yield page


def answer(page: Page) -> None:
    """Use a page of labels or of a study as a person does: two answers on one, two on the other."""
    for key in ("y", "n", "4", "5"):
        page.press(key)


def capture_model_page(width: int) -> None:
    """Generate an image and a sheet of guidances on the shipped miniature's page, and write both tabs."""
    with TemporaryDirectory() as folder, served(write_examples(Path(folder))) as (url, _), opened(url, width) as page:
        page.until("!!document.querySelector('#generate')")
        page.type_into("#seed input", "1")
        page.click("#generate")
        page.until("document.querySelector('#result img')?.naturalWidth > 0", 600)
        page.until("document.querySelector('#history img')?.naturalWidth > 0", 600)
        capture(page, MODEL_PAGE[0], width)
        page.evaluate("[...document.querySelectorAll('[role=tab]')].find(t => t.innerText.includes('sheet')).click()")
        page.until("document.querySelector('#generate_sheet')?.checkVisibility()")
        page.click("#generate_sheet")
        page.until("document.querySelector('#sheet img')?.naturalWidth > 0", 900)
        capture(page, MODEL_PAGE[1], width)


def main(names: list[str]) -> None:
    """Make what is missing, open the pages of these names (none: all) and write what they show."""
    OUT.mkdir(parents=True, exist_ok=True)
    shown = {name: page for name, page in PAGES.items() if not names or name in names}
    for name in dict.fromkeys(need for page in shown.values() for need in page.needs):
        make(name)
    for width in HEIGHTS:
        for name, each in shown.items():
            with opened(each.file.as_uri(), width) as page:
                answer(page)
                capture(page, name, width, each.at)
        if not names or set(names) & set(MODEL_PAGE):
            capture_model_page(width)


if __name__ == "__main__":
    main(sys.argv[1:])
